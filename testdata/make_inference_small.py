"""Cuts the first pictures out of the golden `inference.npz` for the tests.

usage: make_inference_small.py INFERENCE_NPZ OUT_NPZ

`inference.npz` is what `torch_trap.py export` writes beside `stem.onnx` and `full.onnx`: test pictures, the stem's features
and the trapped model's logits, computed by PyTorch. Kept: `x` [8, 3, 32, 32] in 0..1, `labels` [8], `features`
[8, 64, 8, 8], `logits` [8, 10]; all `f32` but the labels (`i64`).
"""

import sys

import numpy as np

PICTURES = 8

source, target = sys.argv[1:]
with np.load(source) as golden:
    kept = {name: golden[name][:PICTURES] for name in ("x", "labels", "features", "logits")}
np.savez(target, **kept)
