# make demo   shows what truncating back-propagation costs, on an embedded text and on recall
# make test   runs the tests; make test-slow also the long ones, make lint the linters
PYTHON ?= python3
# One worker more than processors: some tests wait for processes that they start.
WORKERS ?= $(shell $(PYTHON) -c 'import os; cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1)); print(min(8, len(cores(0)) + 1))')
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow lint bench bench-gpu bench-methods bench-experiments bench-long bench-gradients results api matrix transforms mutations sanitize test-faults test-compile constraints clean

demo: .venv/installed
	$(BIN)/python launch.py

test: .venv/installed-dev
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

# All tests, the long ones too, with XLA's optimizations except where a test itself turns them off.
test-slow: .venv/installed-dev
	SEQJAX_TESTS_OPTIMIZED=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# One training step against all peers: docs/benchmarks.md, docs/roofline.md. Takes about 15 minutes.
bench: .venv/installed-bench
	$(BIN)/python -m benchmarks.step

# The same on a GPU, in ten minutes, and the table that method="auto" chooses by; resumes where it was cut short.
bench-gpu: .venv/installed-bench
	$(BIN)/python -m benchmarks.gpu
	$(BIN)/python -m benchmarks.methods

bench-experiments: .venv/installed-bench
	$(BIN)/python -m benchmarks.temperature
	$(BIN)/python -m benchmarks.seeds
	$(BIN)/python -m benchmarks.start

bench-long: .venv/installed
	$(BIN)/python -m benchmarks.long

bench-gradients: .venv/installed
	$(BIN)/python -m benchmarks.gradients

# The table that method="auto" chooses by: seqjax/solvers/methods.csv. Takes about three minutes.
bench-methods: .venv/installed
	$(BIN)/python -m benchmarks.methods

# All public names: docs/api.md.
api: .venv/installed-dev
	$(BIN)/python -m tools.api

# The sweeps behind docs/studies.md, as far as three hours reach; the same command resumes.
results: .venv/installed
	$(BIN)/python -m tools.results $(if $(DATA_DIR),--data_dir=$(DATA_DIR))

# Every cell, wrapper, method and dtype against scan: docs/matrix.md. Best run on an idle machine.
matrix: .venv/installed-dev
	$(BIN)/python -m tools.matrix

# Every method under every JAX transformation: docs/transforms.md.
transforms: .venv/installed-dev
	$(BIN)/python -m tools.transforms

# Deliberate bugs, each of which a test must catch: docs/mutations.md.
mutations: .venv/installed-dev
	$(BIN)/python -m tools.mutations

# The compiled loop under the sanitizers of g++: docs/sanitizers.md. Takes about an hour.
sanitize: .venv/installed-dev
	$(BIN)/python -m tools.sanitize

# Thousands of real faults, about 35 minutes: docs/reliability.md.
test-faults: .venv/installed-dev
	$(BIN)/python -m tools.faults

# Every cell and method compiled for an H100 and a TPU v5e, which are not needed: docs/compiled.md. About 15 minutes.
test-compile: .venv/installed-dev
	$(BIN)/python -m tools.compiled

# The versions that the tests last ran with, from an environment with every extra; without addresses.
constraints: .venv/installed-dev
	$(BIN)/pip install -q -e '.[bench,dev,mlflow,wandb]'
	$(BIN)/pip list --format=freeze --exclude-editable | grep -v -i -E '^(pip|setuptools|torch|nvidia|triton)' > constraints.txt

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("seqjax needs Python 3.11 or later")'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[experiments]'
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@ .venv/installed

.venv/installed-bench: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
