#!/usr/bin/env python3
"""Inference speed of onnxruntime on random pictures, measured as `stemguard bench` does: one JSON line a case.

  ort_bench.py MODEL [--batch 1,64 --threads 1,2 --rounds 30]
  ort_bench.py MODEL --pictures FILE.npy --make              writes two random pictures
  ort_bench.py MODEL --pictures FILE.npy --compare OURS.npy  compares another runtime's outputs for them

A comparison prints the largest difference over the largest output, and fails above 1e-4.
"""
import argparse, json, sys, time
import numpy as np
import onnxruntime as ort


TOLERANCE = 1e-4


def make(a):
    given = ort.InferenceSession(a.model, providers=['CPUExecutionProvider']).get_inputs()[0]
    np.save(a.pictures, np.random.RandomState(1).rand(2, *given.shape[1:]).astype(np.float32))


def compare(a):
    session = ort.InferenceSession(a.model, providers=['CPUExecutionProvider'])
    given, ours = session.get_inputs()[0].name, np.load(a.compare)
    want = np.concatenate([session.run(None, {given: x[None]})[0] for x in np.load(a.pictures)])
    if ours.shape != want.shape: sys.exit('shape %s where onnxruntime gives %s' % (ours.shape, want.shape))
    difference = float(np.abs(ours - want).max() / np.abs(want).max())
    print(json.dumps(dict(difference=difference)))
    if not difference <= TOLERANCE: sys.exit('outputs differ by %g' % difference)


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
    p.add_argument('--rounds', type=int, default=30); p.add_argument('--pictures')
    p.add_argument('--make', action='store_true'); p.add_argument('--compare')
    a = p.parse_args()
    if a.make or a.compare:
        (make if a.make else compare)(a)
        sys.exit()
    for threads in a.threads:
        for batch in a.batch: print(json.dumps(measure(a, batch, threads)), flush=True)
