#!/usr/bin/env bash
# Builds the no_std core for Cortex-M4F and M7 (thumbv7em-none-eabihf).
#
#   scripts/build_thumb.sh [--source rustup|debian] [cargo build arguments]
#
# Without --source: rustup's precompiled target if it can be added, else `core` built from source with
# Debian's compiler (apt-get install rustc-web rust-web-src), driven by rustup's cargo.
# Without arguments: -p stemguard-runtime --no-default-features.
set -euo pipefail
cd "$(dirname "$0")/.."

target=thumbv7em-none-eabihf
from=
if [[ ${1:-} == --source ]]; then
    from=${2:?rustup or debian}
    shift 2
fi
(($#)) || set -- -p stemguard-runtime --no-default-features

if [[ -z $from ]]; then
    if rustup target add "$target" 2>/dev/null; then from=rustup; else from=debian; fi
fi

case $from in
rustup)
    echo "core: precompiled, rustup's"
    exec cargo build --locked --target "$target" "$@"
    ;;
debian)
    # rust-web-src is where this compiler looks for its own sources.
    compiler=/usr/bin/rustc
    sources=$("$compiler" --print sysroot 2>/dev/null)/lib/rustlib/src/rust/library/core
    if [[ ! -d $sources ]]; then
        echo "Debian's compiler with its sources is missing: apt-get install rustc-web rust-web-src" >&2
        exit 1
    fi
    echo "core: built from source by $("$compiler" --version)"
    # Another compiler, another target directory: neither throws away what the other has built.
    export RUSTC=$compiler RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/debian
    # The linker that rustc-web expects is in no package it asks for; rustup's toolchain brings one.
    lld=$(rustup which rustc)
    lld=${lld%/bin/rustc}/lib/rustlib/$(uname -m)-unknown-linux-gnu/bin/rust-lld
    export CARGO_TARGET_THUMBV7EM_NONE_EABIHF_LINKER=$lld
    exec cargo build --locked -Z build-std=core --target "$target" "$@"
    ;;
*)
    echo "--source is rustup or debian, not '$from'" >&2
    exit 2
    ;;
esac
