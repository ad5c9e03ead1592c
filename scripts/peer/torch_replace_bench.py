#!/usr/bin/env python3
"""Speed of the PyTorch peer's stage 2 on random data: one JSON line.

The loop is the one of `torch_trap.py replace`: frozen stem forward in inference mode on freshly augmented and mixed
pictures, then a training step of a new head, batch 64, Adam with cosine schedule, CutMix, label smoothing, dropout.
`--space features` trains the same head on cached features of `--views` views instead, CutMix on the feature grid; the time
to compute them is told apart.

  torch_replace_bench.py [--epochs 5 --pictures 2500 --threads 2 --channels-last --space pictures|features]
"""
import argparse, json, math, time
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from torch_trap import Head, TrapNet, augment, to_t

BATCH = 64


def mix(x, rng):
    """CutMix in place (arXiv 1905.04899, beta 1): the partners and the share each picture keeps."""
    side = x.shape[2]
    q, c = torch.randperm(len(x)), int(side * math.sqrt(1 - rng.beta(1, 1)))
    cy, cx = rng.randint(side, size=2)
    y0, y1, x0, x1 = max(cy - c // 2, 0), min(cy + c // 2, side), max(cx - c // 2, 0), min(cx + c // 2, side)
    x[:, :, y0:y1, x0:x1] = x[q][:, :, y0:y1, x0:x1]
    return q, 1 - (y1 - y0) * (x1 - x0) / side ** 2


def main(a):
    torch.manual_seed(0); torch.set_num_threads(a.threads)
    rng = np.random.RandomState(0)
    layout = torch.channels_last if a.channels_last else torch.contiguous_format
    net = TrapNet(10).eval().to(memory_format=layout)
    head = Head(64, 10, .5).to(memory_format=layout)
    for m in head.modules():
        if isinstance(m, nn.Conv2d): nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='leaky_relu')
    opt = torch.optim.Adam(head.parameters(), .01 if a.space == 'features' else .03, weight_decay=5e-4)
    sch = torch.optim.lr_scheduler.CosineAnnealingLR(opt, max(a.epochs, 1))
    hx = torch.from_numpy(rng.randint(0, 256, (a.pictures, 32, 32, 3)).astype(np.uint8))
    hy = torch.arange(a.pictures) % 10

    def stem(x):
        # As in torch_trap.py, pictures come as `augment` leaves them in memory; --channels-last makes the layout certain.
        with torch.no_grad(): return net.stem(x.contiguous(memory_format=layout) if a.channels_last else x)

    def pictures(b): return augment(to_t(hx[b].numpy(), 'cpu'))

    fixed, bank = 0., None
    if a.space == 'features':
        t = time.time()
        parts = torch.arange(a.pictures).split(BATCH)
        bank = torch.stack([torch.cat([stem(to_t(hx[b].numpy(), 'cpu') if v == 0 else pictures(b)) for b in parts]) for v in range(a.views)])
        fixed = time.time() - t

    def step(b):
        yb = hy[b]
        if bank is None:
            xb = pictures(b); q, lam = mix(xb, rng); s = stem(xb)
        else:
            s = bank[torch.randint(0, a.views, (BATCH,)), b]; q, lam = mix(s, rng)
        l = head(s)
        loss = lam * F.cross_entropy(l, yb, label_smoothing=.1) + (1 - lam) * F.cross_entropy(l, yb[q], label_smoothing=.1)
        opt.zero_grad(set_to_none=True); loss.backward(); opt.step()

    head.train(); seconds = []
    for _ in range(3): step(torch.arange(BATCH))
    for _ in range(a.epochs):
        t = time.time()
        perm = torch.randperm(a.pictures)
        for i in range(0, a.pictures - BATCH + 1, BATCH): step(perm[i:i + BATCH])
        sch.step(); seconds.append(time.time() - t)
    print(json.dumps(dict(bench='stage2', space=a.space, device='cpu', threads=a.threads, channels_last=a.channels_last,
                          pictures=a.pictures, epochs=a.epochs, fixed_seconds=fixed, epoch_seconds=float(np.median(seconds)))))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--epochs', type=int, default=5); p.add_argument('--pictures', type=int, default=2500)
    p.add_argument('--threads', type=int, default=2); p.add_argument('--channels-last', action='store_true')
    p.add_argument('--space', choices=['pictures', 'features'], default='pictures'); p.add_argument('--views', type=int, default=8)
    a = p.parse_args()
    if a.pictures < BATCH or a.epochs < 1 or a.views < 1: p.error('at least 64 pictures, 1 epoch and 1 view')
    main(a)
