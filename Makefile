# Two commands matter: `make demo` (set-up + the main job) and `make test` (set-up + tests).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(shell find src csrc -type f -not -name '*.pyc' 2>/dev/null)

.PHONY: help demo test test-avx2 test-avx2-short quick lint wheel bench sanitize fuzz arm64 docs release study-checkpoints clean

help:
	@echo "make demo   install, train a tiny bilingual spiking model, compare it with GPT-2, write demo/report.html"
	@echo "make test   install and run the tests"
	@echo "make test-avx2  the same, and a demo of one minute, as on a processor that has AVX2 alone"
	@echo "make quick  the tests that need no PyTorch, under another Python: make quick PYTHON=python3.12"
	@echo "make lint   install and run ruff and mypy"
	@echo "make wheel  build a wheel into dist/ (stable ABI from Python 3.12 on), audit it and use it in an empty environment"
	@echo "make release  that wheel and a source archive, both tried, and notes from the changelog, into dist/"
	@echo "make bench  install and run the benchmarks into results/"
	@echo "make docs   fill the tables of README.md and docs/ from results/, and build the site into site/"
	@echo "make sanitize  build the native code with AddressSanitizer and UBSan and run its tests"
	@echo "make fuzz   the same build under damaged model and state files, for ten minutes"
	@echo "make arm64  compile the native code for arm64 and run the runtime there, under qemu-aarch64"
	@echo "make study-checkpoints  put the five models of the study back under results/study, from the history of the repository"
	@echo "make clean  remove the virtual environment and build files"

# $(VENV)/train holds what training needs, $(VENV)/all also what tests, lint and pages need. The spiking packages that
# tests compare with come without torchvision, torchaudio and samna, whose builds must match torch's or a chip's and are
# not needed here.
$(VENV)/train $(VENV)/all: $(SOURCES)
	@echo "installing symboliclight[$(@F)] into $(VENV) (about two minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) scikit-build-core nanobind cmake ninja setuptools
	@$(PIP) --no-build-isolation '.[$(@F)]'
	@if test $(@F) = all; then $(PIP) --no-deps neurobench spikingjelly norse sinabs; fi
	@touch $@

demo: $(VENV)/train
	$(BIN)/symboliclight demo --out demo

# Several tests at a time, each on one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n logical --maxprocesses 4 --dist worksteal
test: $(VENV)/all
	$(PYTEST)

# A processor that has AVX2 alone, whatever this one has: native code, oneDNN and torch are held there.
AVX2 := SYMBOLICLIGHT_MAX_ISA=avx2 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2
test-avx2: $(VENV)/all
	$(AVX2) $(PYTEST)
	rm -rf build/demo-avx2
	$(AVX2) $(BIN)/symboliclight demo --minutes 1 --out build/demo-avx2

# The short form: training steps, the demo on a budget of four steps, golden cases of model and runtime.
SHORT := tests/test_golden.py tests/train/test_train.py tests/train/test_train_precision.py tests/show/test_demo.py tests/engine/test_exact.py
test-avx2-short: $(VENV)/all
	$(AVX2) $(PYTEST) $(SHORT)

# They left the tree to keep it light; this commit holds them. A shallow clone does not: git fetch --unshallow.
study-checkpoints:
	git archive b06dd07 results/study/v1/checkpoints results/study/v1-plus-confirm/checkpoints | tar x

quick:
	tools/quick.sh $(PYTHON) $(WHEEL)

lint: $(VENV)/all
	$(BIN)/ruff check src tests tools
	$(BIN)/mypy

wheel:
	$(PYTHON) tools/wheel.py

release:
	$(PYTHON) tools/release.py

bench: $(VENV)/all
	$(BIN)/symboliclight bench all

sanitize: $(VENV)/all
	tools/sanitize.sh $(BIN)/python

fuzz: $(VENV)/all
	@$(PIP) atheris
	SANITIZER=$$($(BIN)/python -c "import atheris; print(atheris.path())")/asan_with_fuzzer.so \
	    tools/sanitize.sh $(BIN)/python tools/fuzz.py --seconds 600

arm64: $(VENV)/all
	@$(PIP) ziglang
	tools/arm64.sh $(BIN)/python

docs: $(VENV)/all
	$(BIN)/python tools/fill_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open site/index.html"

clean:
	rm -rf $(VENV) build dist
