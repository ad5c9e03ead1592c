#!/usr/bin/env bash
# Builds the demo firmware for Cortex-M7 (thumbv7em-none-eabihf), boots it four times over one flash image in QEMU (mps2-an500), runs
# the same program on the host, and compares: lines, footprint, power cuts. Then once more with an image that has memory enough to
# train the published, residual head. Ends in one table; fails where anything is not as it must be.
#
#   scripts/firmware.sh [--source rustup|debian]
#
# Without --source: as scripts/build_thumb.sh. Needs qemu-system-arm and python3.
set -euo pipefail
cd "$(dirname "$0")/.."

from=
if [[ ${1:-} == --source ]]; then
    from=${2:?rustup or debian}
    shift 2
fi
if (($#)); then
    echo "usage: scripts/firmware.sh [--source rustup|debian]" >&2
    exit 2
fi
if [[ -z $from ]]; then
    if timeout 120 rustup target add thumbv7em-none-eabihf 2>/dev/null; then from=rustup; else from=debian; fi
fi
command -v qemu-system-arm >/dev/null || { echo "qemu-system-arm is missing: apt-get install qemu-system-arm" >&2; exit 1; }

boots=4
top=${CARGO_TARGET_DIR:-target}
out=$top/firmware-demo
built=$top/thumbv7em-none-eabihf/firmware
if [[ $from == debian ]]; then built=$top/debian/thumbv7em-none-eabihf/firmware; fi
rm -rf "$out"
mkdir -p "$out"/{device,host}{,-residual}

# What both compilers are asked for: size, whole-program optimisation, no unwinding (profile `firmware`).
for variant in plain sign residual; do
    features=device
    if [[ $variant != plain ]]; then features=device,$variant; fi
    scripts/build_thumb.sh --source "$from" --profile firmware -p firmware-demo --bin firmware-device --features "$features"
    cp "$built/firmware-device" "$out/device-$variant.elf"
done
cargo build --locked --profile firmware -p firmware-demo --bin firmware-host --features host,sign
host=$(realpath "$top/firmware/firmware-host")

"$host" --cuts | tee "$out/cuts.json"
# boot IMAGE FOLDER: one instruction is one nanosecond of the board's clocks; counts are exact, and the same on every machine.
boot() {
    (cd "$2" && exec timeout 1200 qemu-system-arm -machine mps2-an500 -nographic -monitor none -serial null \
        -semihosting-config enable=on,target=native -icount shift=0 -kernel "$1")
}
# The residual image trains beside the four boots of the other.
{
    boot "$(realpath "$out/device-residual.elf")" "$out/device-residual" >"$out/residual-device.jsonl"
    (cd "$out/host-residual" && "$host" --residual flash.bin) >"$out/residual-host.jsonl"
} &
residual=$!
trap 'pkill -P "$residual" || true' EXIT
image=$(realpath "$out/device-sign.elf")
for ((boot = 1; boot <= boots; boot++)); do
    boot "$image" "$out/device" | tee "$out/device-$boot.jsonl"
    (cd "$out/host" && "$host" flash.bin) >"$out/host-$boot.jsonl"
done
ended=0
wait "$residual" || ended=$?
trap - EXIT
cat "$out/residual-device.jsonl"
((ended == 0)) || { echo "the residual image failed (exit code $ended); above is what it told" >&2; exit 1; }
# What `stemguard inspect` tells before flashing, to be compared with what the device finds.
cargo run --locked --quiet --release -p stemguard-runtime --no-default-features --features cli --bin stemguard -- \
    inspect firmware-demo/assets/model.sgm --target cortex-m --batch 32 --holdout-count 256 --json >"$out/inspect.json"
cmp "$out/device/flash.bin" "$out/host/flash.bin"
cmp "$out/device-residual/flash.bin" "$out/host-residual/flash.bin"
python3 scripts/firmware_report.py "$out"
