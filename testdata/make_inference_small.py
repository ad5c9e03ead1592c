"""Cuts the first pictures out of the golden `inference.npz` for the tests.

usage: make_inference_small.py INFERENCE_NPZ OUT_NPZ

`inference.npz` holds test pictures, and the stem's features and the trapped model's logits as PyTorch computed them from the
checkpoint that `torch_trap.py export` turned into `stem.onnx` and `full.onnx`; what wrote it is not kept here. Kept: `x` [8, 3, 32, 32] in 0..1, `labels` [8], `features`
[8, 64, 8, 8], `logits` [8, 10]; all `f32` but the labels (`i64`).
"""

import sys

import numpy as np

PICTURES = 8

source, target = sys.argv[1:]
with np.load(source) as golden:
    kept = {name: golden[name][:PICTURES] for name in ("x", "labels", "features", "logits")}
np.savez(target, **kept)
