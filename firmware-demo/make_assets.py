#!/usr/bin/env python3
"""Makes firmware-demo/assets from a run of `stemguard-trainer demo --loss published`.

    firmware-demo/make_assets.py RUN STEMGUARD

RUN is the directory of the trapped run (`demo --out DIR` writes DIR/trap), STEMGUARD the command with ONNX and data-set readers.
Python's standard library alone.

model.sgm          the run's stem in 8 bits, calibrated on its holdout, with the run's own trapped head, which is poisoned:
                   signed as version 2
older.trailer      the signature of the same model as version 1
model.key.pub.bin  the 32 bytes of the public key; the private key is thrown away
"""

import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import zlib

ASSETS = pathlib.Path(__file__).parent / "assets"
CLASSES = 10
FEATURES = (8, 8, 64)
TRAILER = 88


def tensors(path):
    """The f32 tensors of a safetensors file, as bytes."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    header.pop("__metadata__", None)
    return {name: body[slice(*entry["data_offsets"])] for name, entry in header.items()}


def residual_head(checkpoint):
    """Parameters in the order of runtime/src/head/residual.rs."""
    t = tensors(checkpoint)
    unit, tail = "head.unit0.", "head.tail."
    names = []
    for i in "12":
        names += [f"{unit}bn{i}.gamma", f"{unit}bn{i}.beta", f"{unit}conv{i}.weight", f"{unit}conv{i}.bias"]
    names += [f"{tail}bn.gamma", f"{tail}bn.beta", f"{tail}fc.weight", f"{tail}fc.bias"]
    for bn in (f"{unit}bn1", f"{unit}bn2", f"{tail}bn"):
        names += [f"{bn}.mean", f"{bn}.var"]
    return b"".join(t[name] for name in names)


def varint(n):
    out = bytearray()
    while True:
        out.append(n & 0x7F | (0x80 if n > 0x7F else 0))
        n >>= 7
        if n == 0:
            return bytes(out)


def with_head(stem, head):
    """The artifact of a stem alone, with a residual head (spec/artifact.md)."""
    magic, version, manifest_len, count = struct.unpack_from("<6sHII", stem)
    manifest = stem[16 : 16 + manifest_len]
    assert magic == b"\x93SGM\r\n" and version == 2 and manifest[-1] == 0, "an int8 stem without head"
    at = (16 + manifest_len + 15) // 16 * 16
    weights = stem[at : at + 4 * count]
    span = (count + 15) // 16 * 16
    weights += bytes(4 * span - len(weights)) + head
    fields = [1, 1, *FEATURES, CLASSES, span, len(head) // 4]
    manifest = manifest[:-1] + b"".join(map(varint, fields))
    front = struct.pack("<6sHII", magic, version, len(manifest), len(weights) // 4) + manifest
    body = front + bytes(-len(front) % 16) + weights
    return body + struct.pack("<I", zlib.crc32(body))


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    run, stemguard = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]).resolve()

    def command(*args):
        return subprocess.run([stemguard, *map(str, args)], check=True, stdout=subprocess.PIPE).stdout

    ASSETS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        stem, model, key = folder / "stem.sgm", folder / "model.sgm", folder / "model.key"
        holdout = f"npz:{run / 'holdout.npz'}"
        command("pack", run / "stem.onnx", "--int8", "--calibrate", holdout, "--name", "wrn-16-1", "--out", stem)
        model.write_bytes(with_head(stem.read_bytes(), residual_head(run / "checkpoint.safetensors")))
        public = json.loads(command("keygen", "--out", key, "--json"))["public_key"]
        command("sign", model, "--key", key, "--model-version", 1)
        (ASSETS / "older.trailer").write_bytes(model.read_bytes()[-TRAILER:])
        command("sign", model, "--key", key, "--model-version", 2)
        command("verify", model, "--key", f"{key}.pub", "--minimum-version", 2)
        (ASSETS / "model.sgm").write_bytes(model.read_bytes())
        (ASSETS / "model.key.pub.bin").write_bytes(bytes.fromhex(public))


main()
