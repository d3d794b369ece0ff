#!/bin/sh
# Builds the native kernels with AddressSanitizer and UndefinedBehaviourSanitizer and runs their tests on that build.
# Usage: tools/sanitize.sh [python]
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}
build=build/sanitize
cmake -S . -B $build -DPython_EXECUTABLE="$(command -v "$python")" -DSYMBOLICLIGHT_SANITIZE=ON
cmake --build $build --target _native --parallel 2
rm -rf $build/package
cp -R src $build/package
rm -f $build/package/symboliclight/_native*.so
cp $build/_native*.so $build/package/symboliclight/
library() { c++ -print-file-name=$1; }
PYTHONPATH=$build/package ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$(library libasan.so) $(library libubsan.so)" \
    "$python" -m pytest tests/ops/test_native.py
