#!/bin/sh
# Builds the native code with AddressSanitizer and UndefinedBehaviourSanitizer and runs on it: by default the tests of
# kernels and runtime, else the given command (`tools/sanitize.sh python3 tools/fuzz.py --seconds 600`).
# AMX tiles are emulated (csrc/simd/emulate.hpp), since sanitizers do not see what tile instructions touch.
# SANITIZER names another AddressSanitizer runtime, as atheris brings one that also counts coverage.
# Usage: tools/sanitize.sh [python [arguments]]
set -eu
cd "$(dirname "$0")/.."
python=$(command -v "${1:-python3}")
case $python in /*) ;; *) python=$PWD/$python ;; esac
PATH=$(dirname "$python"):$PATH  # its cmake and ninja
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- -m pytest tests/ops/test_native.py tests/engine
build=build/sanitize
cmake -S . -B $build -DPython_EXECUTABLE="$python" -DSYMBOLICLIGHT_SANITIZE=ON
cmake --build $build --parallel 2
rm -rf $build/package
cp -R src $build/package
rm -f $build/package/symboliclight/*.so
cp $build/_native*.so $build/_engine*.so $build/package/symboliclight/
library() { c++ -print-file-name=$1; }
runtime=${SANITIZER:-$(library libasan.so)}
PYTHONPATH=$build/package ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=32 LD_PRELOAD="$runtime $(library libubsan.so)" \
    "$python" "$@"
