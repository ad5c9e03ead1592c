#!/usr/bin/env bash
# Builds the runtime for 64-bit ARM and runs its kernels' tests under qemu-aarch64: the case suite against the scalar oracle, on NEON.
#
#   scripts/neon.sh [--source rustup|debian] [test filter...]
#
# Without --source: rustup's precompiled target if it can be added, else `std` built from source with Debian's compiler
# (apt-get install rustc-web rust-web-src). Needs gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user.
# Without a filter: the kernels in f32 and 8 bits, and the plans that call them.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
from=
if [[ ${1:-} == --source ]]; then
    from=${2:?rustup or debian}
    shift 2
fi
(($#)) || set -- kernels:: net::int8:: session::engine::tests::a_random_net
for tool in aarch64-linux-gnu-gcc qemu-aarch64; do
    command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user" >&2; exit 1; }
done
if [[ -z $from ]]; then
    if timeout 120 rustup target add "$target" 2>/dev/null; then from=rustup; else from=debian; fi
fi

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER='qemu-aarch64 -L /usr/aarch64-linux-gnu'
# An emulator takes its time; the property tests have run on the host.
export STEMGUARD_CASES=${STEMGUARD_NEON_CASES:-20}
build=()
case $from in
rustup) ;;
debian)
    compiler=/usr/bin/rustc
    sources=$("$compiler" --print sysroot 2>/dev/null)/lib/rustlib/src/rust/library/std
    if [[ ! -d $sources ]]; then
        echo "Debian's compiler with its sources is missing: apt-get install rustc-web rust-web-src" >&2
        exit 1
    fi
    # Another compiler, another target directory: neither throws away what the other has built.
    export RUSTC=$compiler RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/debian
    build=(-Z build-std=std,test)
    ;;
*)
    echo "--source is rustup or debian, not '$from'" >&2
    exit 2
    ;;
esac
cargo test --locked "${build[@]}" --target "$target" -p stemguard-runtime --no-default-features --features parallel --lib -- "$@"
