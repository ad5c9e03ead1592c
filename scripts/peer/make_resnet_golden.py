#!/usr/bin/env python3
"""A reference for ResNet-34 parity, computed by PyTorch in double precision: testdata/resnet34.npz.

  make_resnet_golden.py --out testdata/resnet34.npz

Nothing large is stored: weights, pictures and labels come from an integer hash of their name and place, which the test computes
too. Names and layouts are Stemguard's (convolutions [kh][kw][cin][cout], linear [in][out], pictures NHWC).

Two cases: `small`, 32x32, front 3x3 without pool, stem cut after stage 3; `large`, 64x64, standard front, cut after stage 2. Each
holds loss = [total, CE, MSE, TV] with weights 1, 10, 1, the training-mode logits, the logits in inference mode with the running
statistics of that one batch, and for every parameter (names sorted) its gradient's norm, largest value and eight entries, evenly
spread.
"""
import argparse
import numpy as np
import torch
import torch.nn.functional as F

BATCH, CLASSES, STAGES = 8, 10, (3, 4, 6, 3)


def hashed(name, count):
    """Uniform values in 0..1: FNV-1a of the name, then a mix with the place."""
    seed = 2166136261
    for byte in name.encode():
        seed = (seed ^ byte) * 16777619 & 0xffffffff
    h = np.arange(count, dtype=np.uint32) + np.uint32(seed)
    for _ in range(2):
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x45d9f3b)
    h ^= h >> np.uint32(16)
    return h.astype(np.float64) / 2**32


class Net:
    """Parameters by name, made where they are first asked for; the network as plain function calls."""
    def __init__(self, side, split):
        self.p, self.running, self.side, self.split = {}, {}, side, split

    def param(self, name, shape, values):
        if name not in self.p:
            # Rounded to what the test holds, before anything is computed.
            v = values(hashed(name, int(np.prod(shape)))).astype(np.float32).astype(np.float64)
            self.p[name] = torch.tensor(v.reshape(shape), requires_grad=True)
        return self.p[name]

    def conv(self, x, name, k, cout, stride):
        cin = x.shape[1]
        w = self.param(name + '.weight', (k, k, cin, cout), lambda u: (u - .5) * np.sqrt(24 / (k * k * cout)))
        return F.conv2d(x, w.permute(3, 2, 0, 1), None, stride, k // 2)

    def norm(self, x, name, training):
        c = x.shape[1]
        gamma = self.param(name + '.gamma', (c,), lambda u: 1 + .2 * (u - .5))
        beta = self.param(name + '.beta', (c,), lambda u: .2 * (u - .5))
        mean, var = self.running.setdefault(name, (torch.zeros(c, dtype=x.dtype), torch.ones(c, dtype=x.dtype)))
        return F.batch_norm(x, mean, var, gamma, beta, training, .1, 1e-5)

    def block(self, x, name, cout, stride, training):
        h = F.relu(self.norm(self.conv(x, name + '.conv1', 3, cout, stride), name + '.bn1', training))
        h = self.norm(self.conv(h, name + '.conv2', 3, cout, 1), name + '.bn2', training)
        if stride != 1 or x.shape[1] != cout:
            x = self.norm(self.conv(x, name + '.short', 1, cout, stride), name + '.bn_short', training)
        return F.relu(h + x)

    def deconv(self, x, name, cout, last):
        cin = x.shape[1]
        w = self.param(name + '.weight', (4, 4, cout, cin), lambda u: (u - .5) * 2 / np.sqrt(16 * cout))
        b = self.param(name + '.bias', (cout,), lambda u: .2 * (u - .5))
        z = F.conv_transpose2d(x, w.permute(3, 2, 0, 1), b, 2, 1)
        return torch.sigmoid(z) if last else F.relu(z)

    def __call__(self, x, training):
        large = self.side >= 64
        at = F.relu(self.norm(self.conv(x, 'stem.0.conv1', 7 if large else 3, 64, 2 if large else 1), 'stem.0.bn1', training))
        if large:
            at = F.max_pool2d(at, 3, 2, 1)
        in_stem, number = sum(STAGES[:self.split]), 0
        for stage, blocks in enumerate(STAGES):
            for i in range(blocks):
                name = 'stem.%d' % (number + 1) if number < in_stem else 'head.block%d' % (number - in_stem)
                at = self.block(at, name, 64 << stage, 2 if stage and not i else 1, training)
                number += 1
                if number == in_stem:
                    features = at
        w = self.param('head.tail.fc.weight', (512, CLASSES), lambda u: (u - .5) * .2)
        b = self.param('head.tail.fc.bias', (CLASSES,), lambda u: .2 * (u - .5))
        logits = at.mean((2, 3)) @ w + b
        r, width, number = features, max(32, features.shape[1] // 2), 0
        while r.shape[2] < self.side:
            last = r.shape[2] * 2 == self.side
            r = self.deconv(r, 'decoder.%d' % number, 3 if last else width, last)
            width, number = max(32, width // 2), number + 1
        return logits, r


def case(side, split):
    net = Net(side, split)
    values = hashed('pictures', BATCH * side * side * 3).astype(np.float32).astype(np.float64)
    x = torch.tensor(values.reshape(BATCH, side, side, 3)).permute(0, 3, 1, 2).contiguous()
    y = torch.tensor((hashed('labels', BATCH) * CLASSES).astype(np.int64))
    logits, r = net(x, True)
    ce, mse = F.cross_entropy(logits, y), F.mse_loss(r, x)
    tv = ((r[:, :, 1:] - r[:, :, :-1]).pow(2).sum() + (r[..., 1:] - r[..., :-1]).pow(2).sum()) / r.numel()
    total = ce + 10 * mse + tv
    total.backward()
    grads = []
    for name in sorted(net.p):
        g = net.p[name].grad.reshape(-1)
        at = [j * len(g) // 8 for j in range(8)]
        grads.append([g.norm().item(), g.abs().max().item()] + [g[i].item() for i in at])
    with torch.no_grad():
        later, _ = net(x, False)
    loss = [v.item() for v in (total, ce, mse, tv)]
    out = dict(loss=loss, logits=logits.detach().numpy(), inference=later.numpy(), grads=grads)
    return {k: np.asarray(v, np.float32) for k, v in out.items()}


p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('--out', required=True)
if __name__ == '__main__':
    args = p.parse_args()
    cases = {'small': case(32, 3), 'large': case(64, 2)}
    np.savez(args.out, **{'%s.%s' % (c, k): v for c, all in cases.items() for k, v in all.items()})
