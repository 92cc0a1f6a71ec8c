# make demo      trains a bridge and draws it; with SOURCE=a.npy TARGET=b.npy, between your own samples
# make test      all tests; ARGS='-k cache' for some of them
# make lint      formatting, types, who includes whom
# make bench     against PyTorch, which it installs; ARGS='--what unet' for images, in about 12 minutes
# make clean     removes what make made, .venv too
# make format | sanitize | cross | dist
#
# Each makes the .venv that it needs. PYTHON=python3.12 chooses the interpreter, CC= the compiler.

PYTHON ?= python3
DSB_WERROR ?= 1
export DSB_WERROR

VENV := .venv
BIN := $(VENV)/bin
CORE_FILES := $(shell find csrc -type d -name '[a-z]*' -o -name '*.[ch]')
C_FILES := $(shell find csrc tests/c bench -name '*.[ch]')

.PHONY: demo test lint bench clean format sanitize cross dist python

# A newer compiler than ours may warn where ours does not: no reason to refuse a demonstration.
demo: DSB_WERROR = 0
demo: $(VENV)/.extra-plot $(VENV)/.core
	$(BIN)/python -m dsb.demo $(if $(SOURCE),--source '$(SOURCE)') $(if $(TARGET),--target '$(TARGET)')

test: $(VENV)/.extra-test $(VENV)/.core
	$(BIN)/python -m pytest -q -rs $(ARGS)

lint: $(VENV)/.extra-lint $(VENV)/.core
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	$(BIN)/python -m pytest -q -rs --noconftest tests/test_structure.py

format: $(VENV)/.extra-lint
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

bench: $(VENV)/.extra-bench $(VENV)/.core
	$(BIN)/python bench/run.py $(ARGS)

sanitize: python
	$(PYTHON) tests/c/build.py sanitize

cross: python
	$(PYTHON) tests/c/build.py cross

# The wheel is built from the sdist, so a file that MANIFEST.in forgets is missed here.
dist: $(VENV)/.extra-build
	rm -rf dist
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	rm -f dsb/*.so
	find csrc dsb tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

python:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is missing: '$(PYTHON)' is not" \
	    "found. Debian, Ubuntu: sudo apt install python3; Fedora: sudo dnf install python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$($(PYTHON) --version)" \
	    "is too old: 3.11 or newer is needed. Debian, Ubuntu: sudo apt install python3.11;" \
	    "Fedora: sudo dnf install python3.11; then make PYTHON=python3.11" >&2; exit 1; }

# What building needs is installed first and without isolation: each rebuild is then a second.
$(VENV)/.made: | python
	@$(PYTHON) csrc/recipe.py
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	    | $(BIN)/pip install -q -r /dev/stdin
	@touch $@

$(VENV)/.core: $(VENV)/.made setup.py csrc/recipe.py $(CORE_FILES)
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

$(VENV)/.extra-%: pyproject.toml $(VENV)/.made | $(VENV)/.core
	$(BIN)/pip install -q --no-build-isolation -e '.[$*]'
	@touch $@
