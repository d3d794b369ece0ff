#!/usr/bin/env bash
# The suite's quick half, all that needs no PyTorch, under any Python: tools/quick.sh PYTHON [WHEEL].
# Without WHEEL it builds the source. The environment is kept in build/.
set -euo pipefail
python=$1
what=${2:-.}
environment=build/quick-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
test -x "$environment/bin/python" || "$python" -m venv "$environment"
install=("$environment/bin/python" -m pip install -qq --disable-pip-version-check -c constraints.txt)
"${install[@]}" scikit-build-core nanobind cmake ninja pytest pytest-timeout hypothesis pyarrow zstandard
"${install[@]}" --no-build-isolation "$what[serve,neuro]"
"$environment/bin/python" -m pytest -m "not slow and not gpu" -p no:cacheprovider
