#!/bin/sh
# Compiles all native sources for arm64 Linux with the Clang of the `ziglang` package: proof that they are portable, where
# no such machine is at hand. Usage: tools/arm64.sh [python that has ziglang and nanobind]
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}
build=build/arm64
mkdir -p $build
headers=$("$python" -c "import nanobind, sysconfig; print('-I' + nanobind.include_dir(), '-isystem', sysconfig.get_path('include'))")
for source in csrc/*.cpp; do
    echo "$source"
    "$python" -m ziglang c++ -target aarch64-linux-gnu -std=c++17 -O2 -fPIC -Wall -Wextra -Wno-psabi -ffp-contract=off -fno-math-errno \
        -DSYMBOLICLIGHT_ISA=portable $headers -c "$source" -o $build/"$(basename "$source" .cpp)".o
done
