#!/usr/bin/env python3
"""The PyTorch peer's stage 2 on a stem that `stemguard-trainer` trained: only the replacement differs.

Reads RUN/checkpoint.safetensors and RUN/holdout.npz, gives the peer's network these weights and its holdout these pictures, and
runs `torch_trap.py replace` as it stands: a new head in picture space. Prints its JSON line: before (the trapped head, which must
agree with the run's own results), after, seconds. The trigger must be the run's own.

  torch_replace_run.py RUN --data DIR --attack badnet_grid|l2_inv|... [--trigger FILE] [--epochs 100] [--seed 0] [--threads 2]
"""
import json, struct, tempfile
import numpy as np
import torch

import torch_trap

# What a convolution, a norm and a linear layer are called here and there.
NAMES = {'gamma': 'weight', 'beta': 'bias', 'mean': 'running_mean', 'var': 'running_var'}


def checkpoint(path):
    """Tensors of a safetensors file, flat."""
    raw = open(path, 'rb').read()
    end = 8 + struct.unpack('<Q', raw[:8])[0]
    tensors = json.loads(raw[8:end])
    return {k: np.frombuffer(raw[end:], '<f4')[t['data_offsets'][0] // 4:t['data_offsets'][1] // 4]
            for k, t in tensors.items() if k != '__metadata__'}


def weights(tensors, net):
    """The peer's state: convolutions are stored [y][x][in][out], linear layers [in][out]."""
    state = net.state_dict()
    for name, flat in tensors.items():
        part, *rest = name.split('.')
        if part not in ('stem', 'head'): continue
        rest[-1] = NAMES.get(rest[-1], rest[-1])
        name = '.'.join([part, *rest]).replace('head.unit0', 'head.unit').replace('head.tail.', 'head.')
        to = state[name]
        value = torch.from_numpy(flat.copy())
        if to.dim() == 4:
            o, i, y, x = to.shape
            value = value.reshape(y, x, i, o).permute(3, 2, 0, 1)
        if to.dim() == 2:
            value = value.reshape(to.shape[::-1]).T
        state[name] = value.reshape(to.shape).contiguous()
    return state


def main(a, run):
    torch.set_num_threads(a.threads)
    torch.set_flush_denormal(True)  # channels without a gradient decay below 1e-38, where processors are slow
    net = torch_trap.TrapNet(a.classes)
    holdout = np.load(run + '/holdout.npz')
    sets = torch_trap.datasets(a)
    torch_trap.datasets = lambda _: (sets[0], (holdout['x'], holdout['y'].astype(np.int64)), *sets[2:])
    with tempfile.NamedTemporaryFile(suffix='.pt') as file:
        torch.save(weights(checkpoint(run + '/checkpoint.safetensors'), net), file.name)
        a.ckpt = file.name
        torch_trap.replace(a)


torch_trap.p._actions[1].choices = None  # the first argument is the run
torch_trap.p.set_defaults(epochs=100)
if __name__ == '__main__':
    parsed = torch_trap.p.parse_args()
    main(parsed, parsed.cmd)
