# Everything runs in .venv, made here from constraints.txt; a stamp in it keeps a second run from installing again.
# On a machine with several Pythons: make audit PYTHON=python3.12
PYTHON ?= python3

export PIP_DISABLE_PIP_VERSION_CHECK := 1
CONSTRAINTS := constraints.txt

BIN := .venv/bin
# Nothing is built in isolation: there, pip would fetch build tools (or a torch) that constraints.txt does not name.
# Byte code is compiled on first import instead of for every file that is installed: torch and its kin bring thousands.
INSTALL = -m pip install -qq --no-compile --no-build-isolation -c $(CONSTRAINTS)
WHEEL = build/dist/muaudit-*.whl
# What runs on transformers 5 as well: all that opens models, every attack's contract, and the way from a plan to a report.
CORE_TESTS := tests/attacks/test_contract.py tests/attacks/test_image_contract.py tests/attacks/test_image_contract_others.py \
	tests/attacks/test_relearning.py tests/muaudit/models \
	tests/muaudit/testbed/test_language.py tests/muaudit/test_runner.py tests/muaudit/test_cli.py
# Fuzzing and changing bytes measure no speed, and take what time they are given: run them by hand.
BENCHMARKS := $(filter-out benchmarks/fuzz.py benchmarks/mutations.py,$(wildcard benchmarks/*.py))
PYTEST_TOOLS := pytest pytest-timeout pytest-xdist hypothesis jsonschema

.PHONY: help audit test check typecheck format test-core test-transformers5 test-main bench clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:  ## Lists the targets.
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 22

audit: .venv/.models  ## Trains known-answer models, audits two of them and signs the reports.
	@$(BIN)/muaudit demo

test:  ## Everything that CI runs; pytest's own summary comes last.
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory test-core
	@$(MAKE) --no-print-directory test-transformers5
	@$(MAKE) --no-print-directory test-main

check: .venv/.dev  ## Lints, then type-checks the built wheel, which is what ships.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory typecheck

typecheck: wheel
	cd build/wheel && ../../$(BIN)/mypy --strict --config-file ../../pyproject.toml -p muaudit

.PHONY: wheel
wheel: .venv/.dev
	@rm -rf build && mkdir build
	@$(BIN)/python -m build --wheel --no-isolation --outdir build/dist . > build/log 2>&1 || { cat build/log; exit 1; }
	@$(BIN)/python -m zipfile -e $(WHEEL) build/wheel

format: .venv/.dev  ## Formats and mends what ruff can mend.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-core: .venv-core/.done wheel  ## The wheel alone, without torch: command line, recorded outputs, pytest gate.
	@.venv-core/bin/python $(INSTALL) --no-deps --force-reinstall $(WHEEL)
	@rm -rf build/core && mkdir -p build/core && cp -r examples/release_gate build/core/
	@cd build/core && ../../.venv-core/bin/python -c "import importlib.util as u; assert not u.find_spec('torch'), 'torch is here'"
	cd build/core && ../../.venv-core/bin/muaudit --version
	@cd build/core && ../../.venv-core/bin/muaudit verify --help > /dev/null
	@cd build/core && ../../.venv-core/bin/muaudit render --help > /dev/null
	cd build/core/release_gate && ../../../.venv-core/bin/python -P make_logs.py && ../../../.venv-core/bin/python -P -m pytest -q

# Several workers, each with threads of its own for every core, would mostly wait for each other.
test-transformers5 test-main: export OMP_NUM_THREADS = 1

test-transformers5: .venv-transformers5/.done  ## What touches models, on transformers 5 and without textattack.
	.venv-transformers5/bin/pytest -q -n 2 --dist loadfile -m "not textattack and not chromium and not long" $(CORE_TESTS)

test-main: .venv/.dev  ## The whole test suite.
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 8

bench: .venv/.dev  ## Measures speed and error rates; takes a while, prints, judges nothing.
	@for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

clean:  ## Removes what was built and installed here.
	rm -rf .venv .venv-core .venv-transformers5 build dist muaudit.egg-info demo-audit
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.models: pyproject.toml constraints.txt
	@echo "installing muaudit[models] into .venv; this happens once"
	@$(call environment,.venv)
	@$(BIN)/python $(INSTALL) -e '.[models]'
	@touch $@

.venv/.dev: .venv/.models
	@echo "installing muaudit[all] and the dev tools into .venv; this happens once"
	@$(BIN)/python $(INSTALL) -e '.[all]' --group dev
	@$(call compiled,.venv)
	@touch $@

.venv-core/.done: pyproject.toml constraints.txt
	@echo "installing the core, without torch, into .venv-core; this happens once"
	@$(call environment,.venv-core)
	@.venv-core/bin/python $(INSTALL) . pytest pytest-timeout
	@touch $@

.venv-transformers5/.done: CONSTRAINTS := constraints-transformers5.txt
.venv-transformers5/.done: pyproject.toml constraints-transformers5.txt
	@echo "installing muaudit[models,endpoint,vision,diffusion] on transformers 5 into .venv-transformers5; this happens once"
	@$(call environment,.venv-transformers5)
	@.venv-transformers5/bin/python $(INSTALL) -e '.[models,endpoint,vision,diffusion]' $(PYTEST_TOOLS)
	@$(call compiled,.venv-transformers5)
	@touch $@

# A virtual environment with the pinned pip, and the build tools that building without isolation needs.
define environment
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "muaudit needs Python 3.11 or later; $(PYTHON) is older: make PYTHON=python3.11 ..." >&2; exit 5; }; \
$(PYTHON) -m venv $(1) && $(1)/bin/python -m pip install -qq -c $(CONSTRAINTS) pip && $(1)/bin/python $(INSTALL) setuptools wheel
endef

# The tests start hundreds of processes; where Python may not write bytecode, each would compile anew all that it imports.
define compiled
$(1)/bin/python -m compileall -q -j 0 $(1)/lib > $(1)/compile.log 2>&1 || true
endef
