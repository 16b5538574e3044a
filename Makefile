# Needs Python 3.11 to 3.13 with venv, a C++ compiler, and a package registry that pip reaches.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Programs of the environment, such as ninja, work without activating it.
export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-all coverage check docs mutants down clean constraints

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Create .venv with pinned versions; repeated only when requirements change

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
	  f"Python 3.11, 3.12 or 3.13 is needed; this is {v[0]}.{v[1]}. Name another: make PYTHON=python3.12")'
	@command -v c++ >/dev/null || { echo "A C++ compiler is needed: DeepSpeed compiles a part of itself. Install g++."; exit 1; }
	@echo "1/3 creating an environment in $(VENV) with $$($(PYTHON) --version) ($(PYTHON))"
	@$(PYTHON) -m venv --clear $(VENV)
	@echo "2/3 installing about 150 packages, some 2 GB; a minute or two"
	@$(BIN)/python .ci/install.py
	@echo "3/3 compiling DeepSpeed's communication between CPU workers, once; about a minute"
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib maas_ray >/dev/null 2>&1 & \
	  DS_ACCELERATOR=cpu $(BIN)/python -W ignore -m maas_ray.training.deepspeed.build \
	  >$(VENV)/deepspeed-build.log 2>&1 || { cat $(VENV)/deepspeed-build.log; exit 1; }; wait
	@touch $@
	@echo "installed: $(BIN)/maas --help"

quickstart: install ## Prepare, train, evaluate and deploy a small model, and ask it
	@$(BIN)/python jobs/quickstart.py

# Each process of integration tests has a Ray cluster of its own, and takes the next file when it is done with one.
RESULTS := build/tests
UNIT := OMP_NUM_THREADS=1 $(BIN)/pytest tests/unit -n logical --maxprocesses 8 --dist worksteal \
  --junit-xml $(RESULTS)/unit.xml
TOGETHER := $(BIN)/pytest tests/integration -n 2 --dist loadfile --no-loadscope-reorder \
  --junit-xml $(RESULTS)/integration.xml
ALONE := $(BIN)/pytest tests/integration --junit-xml $(RESULTS)/alone.xml

# Each worker process of Ray would compile the package again if Python writes no bytecode (PYTHONDONTWRITEBYTECODE).
test: install ## Run the tests
	@$(BIN)/python -m compileall -q -j 0 maas_ray tests
	$(UNIT)
	$(TOGETHER) -m 'not (alone or slow or soak)'
	$(ALONE) -m 'alone and not (slow or soak)'

test-all: install ## Run the tests, and those that take long: tests/README.md lists them
	$(UNIT) -m ''
	$(TOGETHER) -m 'not alone'
	$(ALONE) -m alone

coverage: install ## Run the unit tests and measure the lines they reach; an error below the floor in pyproject.toml
	$(UNIT) --cov --cov-report html:build/coverage --cov-report term:skip-covered

check: install ## Run the linter, the formatter's check and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install ## Build the documentation into build/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "built: build/site/index.html"

mutants: install ## Change the modules of [tool.mutmut] in a thousand ways and list the changes that no test notices
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt 'mutmut>=3.8,<4'
	$(BIN)/mutmut run
	$(BIN)/mutmut results

down: install ## End the cluster that maas started
	@$(BIN)/maas down

clean: ## Remove the environment and all generated files
	rm -rf $(VENV) build dist mutants *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

constraints: ## Update constraints.txt to the newest versions that pyproject.toml allows
	@rm -rf build/constraints && mkdir -p build
	@$(PYTHON) -m venv build/constraints
	@echo "installing the newest versions into build/constraints"
	@build/constraints/bin/python -m pip install -qq --disable-pip-version-check -e '.[test,docs,client,compression]'
	@build/constraints/bin/python -m pip check
	@{ echo "# Every package of .[test,docs,client,compression], as resolved by \`make constraints\`."; \
	  build/constraints/bin/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//' | grep -v '^nvidia-'; } >constraints.txt
	@rm -rf build/constraints
	@echo "wrote constraints.txt"
