# make pilot   set up, run pilots/quickstart.yaml, print the path of the report
# make test    set up, run the whole test suite
# make lab     JupyterLab on notebooks/
# make smoke   the small pilot that CI runs
# make fuzz    the native kernels under AddressSanitizer and UBSan
# make lint    ruff, as the tests' authors run it

PYTHON ?= $(firstword $(foreach name,python3.13 python3.12 python3.11 python3,$(shell command -v $(name) 2>/dev/null)))
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PILOT ?= pilots/quickstart.yaml

.PHONY: pilot test lab smoke fuzz lint clean

pilot: .venv/ready
	@$(BIN)/workbench run $(PILOT)

smoke: .venv/ready
	@$(BIN)/workbench run pilots/smoke.yaml

test: .venv/ready-for-tests
	@$(BIN)/python -m pytest

lab: .venv/ready
	@$(BIN)/jupyter lab --notebook-dir=notebooks

fuzz: .venv/ready-for-tests
	@$(BIN)/python -m ternary_kernels.fuzz

lint: .venv/ready-for-tests
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf .venv build *.egg-info kernels/ternary_kernels/_native

.venv/bin/python:
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, got: $$($(PYTHON) --version 2>&1)." \
	       "Name one: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@echo "setting up .venv (once; some minutes)" >&2
	@$(PYTHON) -m venv .venv

.venv/ready: pyproject.toml constraints.txt | .venv/bin/python
	@$(PIP) -e '.[notebooks]'
	@$(BIN)/python -m ternary_kernels.build || echo "going on without native kernels" >&2
	@touch $@

.venv/ready-for-tests: .venv/ready
	@$(PIP) -e '.[notebooks,test,lora]'
	@touch $@
