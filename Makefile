# From a fresh clone: git, make, python3 >= 3.10 and a package index are enough for every target.

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# Small models: more threads than this cost time.
CORES := $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ "$$n" -gt 4 ] && echo 4 || echo "$$n")
export OMP_NUM_THREADS ?= $(CORES)
# Empty: every process that a test starts would otherwise compile our sources again.
export PYTHONDONTWRITEBYTECODE :=
# Tests run side by side, each in one thread.
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist worksteal

.PHONY: help demo test test-slow test-all test-oldest test-newest detect compat gpu check docs format clean distclean

help:
	@echo "make demo        train a small GPT until its attention logits run away, watch it happen, read why"
	@echo "make test        the tests, side by side (less than 10 minutes on 2 cores); ARGS=\"-k name\" goes to pytest, ARGS=\"-n 0\" runs one after the other"
	@echo "make test-slow   the other tests: those that take long, and the rest of the large families"
	@echo "make test-all    both"
	@echo "make test-oldest, make test-newest   a small set of tests at the ends of what is supported"
	@echo "make detect      real trainings, some of which go wrong: are they found, and the others left alone? (5 minutes)"
	@echo "make compat      every family of transformers and more: is it left alone, is it seen? (30 minutes)"
	@echo "make gpu         on a machine with a CUDA device: the tests and benchmarks that need one (6 minutes)"
	@echo "make check       lint, format, types, and the documentation without a broken link"
	@echo "make docs        the documentation as a site, in build/site"
	@echo "make format      format the sources"
	@echo "make clean       remove caches and build output; distclean removes $(VENV) too"

$(VENV)/.ready: pyproject.toml scripts/setup-venv
	@scripts/setup-venv
	@touch $@

$(VENV)/.ready-dev: pyproject.toml scripts/setup-venv
	@scripts/setup-venv dev
	@touch $@ $(VENV)/.ready

demo: $(VENV)/.ready
	@$(BIN)/stabwatch demo $(ARGS)

test: $(VENV)/.ready-dev
	@scripts/setup-system
	@$(TESTS) $(ARGS)

test-slow: $(VENV)/.ready-dev
	@scripts/setup-system
	@$(TESTS) -m slow $(ARGS)

test-all: $(VENV)/.ready-dev
	@scripts/setup-system
	@$(TESTS) -m "slow or not slow" $(ARGS)

test-oldest: $(VENV)/.ready-dev
	@scripts/test-versions oldest $(ARGS)

test-newest: $(VENV)/.ready-dev
	@scripts/test-versions newest $(ARGS)

detect: $(VENV)/.ready-dev
	@$(BIN)/python -m benchmarks.detection --quick

compat: $(VENV)/.ready-dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.compat $(ARGS)

gpu: $(VENV)/.ready-dev
	@scripts/measure-gpu $(ARGS)

check: $(VENV)/.ready-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(SITE) --quiet

docs: $(VENV)/.ready-dev
	@$(SITE)

format: $(VENV)/.ready-dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
