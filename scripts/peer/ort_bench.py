#!/usr/bin/env python3
"""Inference speed of onnxruntime on random pictures, measured as `stemguard bench` does: one JSON line a case.

  ort_bench.py MODEL [--batch 1,64 --threads 1,2 --rounds 30]
"""
import argparse, json, time
import numpy as np
import onnxruntime as ort


def measure(a, batch, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(a.model, options, providers=['CPUExecutionProvider'])
    given = session.get_inputs()[0]
    x = {given.name: np.random.RandomState(0).rand(batch, *given.shape[1:]).astype(np.float32)}
    start, warm = time.perf_counter(), 0
    while warm < 2 or time.perf_counter() - start < .2:
        session.run(None, x); warm += 1
    ms = []
    for _ in range(a.rounds):
        start = time.perf_counter(); session.run(None, x); ms.append(1000 * (time.perf_counter() - start) / batch)
    ms = np.sort(ms)
    return dict(backend='onnxruntime', batch=batch, threads=threads, median_ms_per_image=float(np.median(ms)),
                p95_ms_per_image=float(ms[-(-95 * len(ms) // 100) - 1]), images_per_second=1000 * len(ms) / float(ms.sum()))


if __name__ == '__main__':
    numbers = lambda text: [int(n) for n in text.split(',')]
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('model'); p.add_argument('--batch', type=numbers, default=[1, 64]); p.add_argument('--threads', type=numbers, default=[1, 2])
    p.add_argument('--rounds', type=int, default=30)
    a = p.parse_args()
    for threads in a.threads:
        for batch in a.batch: print(json.dumps(measure(a, batch, threads)), flush=True)
