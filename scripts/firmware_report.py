#!/usr/bin/env python3
"""Compares a device's boots with a host's and tells what the device took: the last step of scripts/firmware.sh.

    scripts/firmware_report.py FOLDER

FOLDER holds device-sign.elf and device-plain.elf (images with and without signatures), cuts.json (the host's power cuts), inspect.json (what
`stemguard inspect` tells of the model), and for each boot device-N.jsonl and host-N.jsonl; device-residual.elf, residual-device.jsonl
and residual-host.jsonl of the image that trains the residual head. Exits with 1 where a line differs, a target is missed, or a
function can give up that is not known to. Python's standard library alone.
"""

import json
import pathlib
import re
import sys

from firmware_elf import Image

KIB = 1024
STAGES = {
    "before": "before: trapped head",
    "after": "after: head replaced",
    "after rollback": "after a bad head was rejected",
    "after reboot": "after another boot",
    "residual of the residual image": "residual head, trained on the device",
}
# Functions of the images that may call what gives up, and why they stay; any other, or more calls, is a failure. A function may be
# inlined into its caller, which is then listed: the calls of each entry are counted together.
MAY_PANIC = (
    # One bounds check of ed25519-dalek over a signature whose length its type fixes; `verify` is where it is inlined.
    (re.compile(r"^stemguard_runtime::artifact::sign::verify$|ed25519_dalek::|curve25519_dalek::"), 1),
)


def lines(path):
    """Lines that must be equal, and what only a device measures."""
    parsed = [json.loads(line) for line in path.read_text().splitlines()]
    return [p for p in parsed if "measured" not in p], [p for p in parsed if "measured" in p]


def grouped(n):
    return f"{n:,}"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    failures, table, stages, measured, lessons, compared = [], [], {}, {}, [], 0
    boots = len(list(folder.glob("device-*.jsonl")))
    for n in [*range(1, boots + 1), "residual"]:
        names = [f"{side}-{n}.jsonl" if n != "residual" else f"{n}-{side}.jsonl" for side in ("device", "host")]
        (device, costs), (host, _) = (lines(folder / name) for name in names)
        lessons += [line for line in device if line.get("stage") == "badly taught"]
        for line in device:
            name = line.get("stage", "") if n != "residual" else f"{line.get('stage')} of the residual image"
            stages.setdefault(name, line)
        for cost in costs:
            value = cost["bytes"] if "bytes" in cost else cost["instructions"] // cost["times"]
            # The trapped head runs in the first boot, the linear one in the others.
            name = "new head" if cost["measured"] == "head" and n != 1 else cost["measured"]
            name = f"{name} of the residual image" if n == "residual" else name
            measured[name] = max(value, measured.get(name, 0))
        compared += len(device)
        for a, b in zip(device, host):
            if a != b:
                failures.append(f"boot {n}: the device says {json.dumps(a)}, the host {json.dumps(b)}")
        if len(device) != len(host):
            failures.append(f"boot {n}: {len(device)} lines on the device, {len(host)} on the host")
        failures += [f"boot {n}: fault: {line['fault']}" for line in device if "fault" in line]

    def row(what, value, limit=None):
        """A row; `limit` in bytes is not to be reached."""
        shown, target = (grouped(value), "") if isinstance(value, int) else (value, "")
        if limit is not None:
            target = f"< {grouped(limit)}"
            if value >= limit:
                failures.append(f"{what}: {shown}, target {target}")
        table.append((what, shown, target))

    for stage, what in STAGES.items():
        if line := stages.get(stage):
            acc, asr = line["right"] / line["tested"], line["hits"] / line["triggered"]
            counts = [f"{line[a]}/{line[b]}" for a, b in (("right", "tested"), ("hits", "triggered"))]
            row(f"ACC, ASR {what}", f"{acc:.1%} ({counts[0]}), {asr:.1%} ({counts[1]})")
            if "alarms" in line:
                counts = [(line[a], line[b]) for a, b in (("alarms", "triggered"), ("false_alarms", "tested"))]
                row("  tripwire: triggered, clean pictures", ", ".join(f"{a / b:.1%} ({a}/{b})" for a, b in counts))
        else:
            failures.append(f"no stage '{stage}'")
    for line in lessons:
        change = line["right"] - line["right_before"]
        row(f"badly taught: {line['lesson']}", f"{change:+} right of {stages['before']['tested']}, {line['verdict']}")
    row("lines equal to the host's", f"{compared} of {compared}, to the bit" if not failures else "NOT ALL")
    cuts = json.loads((folder / "cuts.json").read_text())
    row("power cuts survived / tried", f"{grouped(cuts['survived'])} / {grouped(cuts['tried'])}")
    if cuts["survived"] != cuts["tried"]:
        failures.append("a power cut was not survived")

    signed, plain = Image(folder / "device-sign.elf"), Image(folder / "device-plain.elf")
    residual = Image(folder / "device-residual.elf")
    row("flash: code and constants, no signatures", plain.code, 64 * KIB)
    row("flash: code and constants, signatures", signed.code, 96 * KIB)
    row("flash: model, forgeries, pictures", signed.assets)
    memory = stages["memory"]
    picture, features = 32 * 32 * 3, 8 * 8 * 64
    told = json.loads((folder / "inspect.json").read_text())["cortex_m"]
    for name in ("arena", "head", "training", "work", "bank", "order", "parameter"):
        found = memory.get(name, memory.get(name + "s"))
        if told[name + "_bytes"] != found:
            failures.append(f"inspect tells {told[name + '_bytes']} bytes for {name}, the device {found}")
    row("RAM: arena of the stem", memory["arena"], 64 * KIB)
    row("RAM: inference, trapped head included (work, picture, features)", memory["work"] + picture + features, 64 * KIB)
    training = memory["training"] + memory["order"] + memory["parameters"]
    row("RAM: bank of 256 pictures", memory["bank"])
    row("RAM: training of a linear head (in the place of inference)", training)
    row("RAM: bank and training", memory["bank"] + training, 96 * KIB)
    row("RAM: all static, one place for inference and training", measured["static memory"])
    row("RAM: stack, high water", measured["stack"])
    row("instructions: stem, one picture", measured["stem"])
    row("instructions: trapped head (residual, f32), one picture", measured["head"])
    row("instructions: new head (linear, f32), one picture", measured["new head"])
    row("instructions: one training step, 32 banked pictures", measured["training step"])
    row("instructions: one training step of the residual head, 8 pictures", measured["training step of the residual image"])
    row("RAM: all static, training of the residual head", measured["static memory of the residual image"])
    row("instructions: storing a head", measured["store"])
    row("instructions: verifying signature and model", measured["verify"])

    wide = max(len(what) for what, _, _ in table)
    print("\n" + "\n".join(f"{what:{wide}}  {value:>34}  {target}".rstrip() for what, value, target in table))
    print("\ncalls that can give up:")
    for image, what in ((plain, "without signatures"), (signed, "with signatures"), (residual, "residual head")):
        panics = image.panics()
        print(f"  {what}: {sum(panics.values())}")
        left = [most for _, most in MAY_PANIC]
        for name, times in panics.items():
            print(f"    {times:3}  {name}")
            known = next((i for i, (pattern, _) in enumerate(MAY_PANIC) if pattern.search(name)), None)
            if known is not None:
                left[known] -= times
            if known is None or left[known] < 0:
                failures.append(f"{name} can give up, {what}")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    sys.exit(bool(failures))


main()
