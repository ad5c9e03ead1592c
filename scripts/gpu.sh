#!/usr/bin/env bash
# The CUDA engine on this machine's GPU: its tests there, against the CPU engine, then trap steps beside PyTorch's.
#
#   scripts/gpu.sh [--binaries DIR] [--rounds N]
#
# Without cargo on the machine with the GPU, DIR holds what was built elsewhere: `trap_speed`, `stemguard`, and `lib_tests`, the test
# program that `cargo test --release -p stemguard-trainer --lib --no-run` names. Needs a driver, NVRTC on the loader's path, and for
# the second part PyTorch under $PYTHON. Fails where a test fails, or where there is no GPU that can be used.
set -euo pipefail
cd "$(dirname "$0")/.."

binaries='' rounds=3
while (($#)); do
    case $1 in
        --binaries) binaries=$(cd "${2:?--binaries takes a folder}" && pwd) && shift 2 ;;
        --rounds) rounds=${2:?--rounds takes a number} && shift 2 ;;
        *) echo "scripts/gpu.sh: $1 is not an option; see its head" >&2 && exit 2 ;;
    esac
done

# Without g++ the tests leave out the host's mirror of the kernels, which other machines check.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if [[ -n $binaries ]]; then
    tests=$binaries/lib_tests
else
    tests=$(cargo test --release --locked -p stemguard-trainer --lib --no-run --message-format json |
        grep '"executable":"[^"]' | tail -n 1 | sed 's/.*"executable":"\([^"]*\)".*/\1/')
fi
STEMGUARD_REQUIRE=gpu PATH=/nowhere "$tests" cuda device --nocapture --test-threads 1 >"$log" 2>&1 || { cat "$log"; exit 1; }
grep -E 'apart|^test result' "$log"
if ! grep -qE '^test result: ok. [1-9][0-9]* passed' "$log"; then
    echo "scripts/gpu.sh: no test of the engine is in $tests" >&2
    exit 1
fi
python3 scripts/bench_peers.py --cases gpu --rounds "$rounds" --python "${PYTHON:-python3}" ${binaries:+--binaries "$binaries"}
