#!/bin/sh
# Compiles all native sources for arm64 Linux with the Clang of the `ziglang` package, and runs the runtime there, under
# qemu-aarch64: golden cases and every precision (tests/engine) on processors without dot products, with them, and with i8mm.
# An emulator says what is right, not how fast. Usage: tools/arm64.sh [python that has symboliclight, its tests' needs and ziglang]
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}
build=build/arm64
rm -rf $build
mkdir -p $build

if ! command -v qemu-aarch64 > /dev/null; then
    { apt-get update && apt-get install -y --no-install-recommends qemu-user; } > $build/log 2>&1 || {
        echo "arm64.sh: needs qemu-aarch64; install it: apt-get install qemu-user, as root" >&2
        exit 2
    }
fi
"$python" -m ziglang version > /dev/null 2>&1 || {
    echo "arm64.sh: needs a compiler for arm64; install it: $python -m pip install ziglang" >&2
    exit 2
}
compile="$python -m ziglang c++ -std=c++17 -O2 -Wall -Wextra -Wno-psabi -ffp-contract=off -fno-math-errno -Icsrc -target aarch64-linux"

# What Python loads is only compiled: there is no Python for arm64 here.
headers=$("$python" -c "import nanobind, sysconfig; print('-I' + nanobind.include_dir(), '-isystem', sysconfig.get_path('include'))")
printf '%s\n' kernels/bind engine/engine_bind kernels/kernels kernels/parallel |
    xargs -P 2 -I @ $compile-gnu -fPIC -DSYMBOLICLIGHT_ISA=portable $headers -c csrc/@.cpp -o /dev/null

# The rest is a program that needs nothing but a kernel.
printf '%s\n' "portable generic" "dotprod generic+dotprod" "i8mm generic+dotprod+i8mm" |
    xargs -P 2 -L 1 sh -c "$compile-musl -mcpu=\$1 -DSYMBOLICLIGHT_ISA=\$0 -c csrc/engine/engine.cpp -o $build/\$0.o"
$compile-musl -static $build/portable.o $build/dotprod.o $build/i8mm.o csrc/engine/runtime.cpp csrc/engine/thread_pool.cpp tests/engine/runtime_test.cpp \
    -o $build/runtime_test

PYTHONPATH=tests "$python" tests/engine/cases.py $build/cases
# A processor, and the instruction sets that it must be found to have.
printf '%s\n' "max portable,dotprod,i8mm" "cortex-a76 portable,dotprod" "cortex-a53 portable" |
    xargs -P 2 -L 1 sh -c "found=\$(qemu-aarch64 -cpu \$0 $build/runtime_test \$1 $build/cases/*) && echo \"\$0: \$found\""
SYMBOLICLIGHT_MAX_ISA=dotprod qemu-aarch64 -cpu max $build/runtime_test portable,dotprod $build/cases/*int8
