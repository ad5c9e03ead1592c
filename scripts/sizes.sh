#!/usr/bin/env bash
# Bounds what is shipped: bytes of the command line, lean and full, and the memory of `infer` and of `replace` with 2,500 pictures.
# Fails where a bound is exceeded.
#
#   scripts/sizes.sh [--lean]
#
# --lean: the lean command line alone, which builds in a minute; the full one takes ten. Needs GNU time and python3 without --lean.
set -euo pipefail
cd "$(dirname "$0")/.."

lean_bytes=2000000 full_bytes=25000000 infer_kib=$((20000000 / 1024)) replace_kib=$((300000000 / 1024))
top=${CARGO_TARGET_DIR:-target}
failed=0

# bound NAME UNIT FOUND MOST
bound() {
    printf '%-40s %12d %s, at most %d\n' "$1" "$3" "$2" "$4"
    if (($3 > $4)); then
        echo "$1 is too large" >&2
        failed=1
    fi
}

# Another target directory: the lean one is built from other features of the same libraries.
CARGO_TARGET_DIR=$top/lean-build cargo build --locked --profile lean -p stemguard-runtime --no-default-features --features cli
bound 'lean command line' bytes "$(stat -c %s "$top/lean-build/lean/stemguard")" $lean_bytes
if [[ ${1:-} == --lean ]]; then exit $failed; fi

cargo build --locked --profile dist --bin stemguard
full=$top/dist/stemguard
bound 'full command line' bytes "$(stat -c %s "$full")" $full_bytes

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# 32 x 32 pictures as binary PPM, 250 in each of ten folders.
python3 - "$scratch/clean" <<'PYTHON'
import pathlib, random, sys
random.seed(0)
for label in range(10):
    folder = pathlib.Path(sys.argv[1], 'class%d' % label)
    folder.mkdir(parents=True)
    for i in range(250):
        (folder / ('%d.ppm' % i)).write_bytes(b'P6 32 32 255\n' + random.randbytes(32 * 32 * 3))
PYTHON

# peak NAME MOST COMMAND...: KiB resident at most
peak() {
    local name=$1 most=$2
    shift 2
    /usr/bin/time -f %M -o "$scratch/peak" "$@" >/dev/null
    bound "$name" KiB "$(tail -n 1 "$scratch/peak")" "$most"
}

"$full" pack testdata/stem.onnx --out "$scratch/stem.sgm" >/dev/null
peak 'replace, 2,500 pictures in 8 views' $replace_kib "$full" replace "$scratch/stem.sgm" --holdout "folder:$scratch/clean" \
    --epochs 1 --out "$scratch/defended.sgm"
peak 'infer' $infer_kib "$full" infer "$scratch/defended.sgm" "$scratch/clean/class0/0.ppm"
exit $failed
