# Everything a user or contributor types. `make quickstart` is the whole method in minutes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SPEC := .[train,quant,eval,dev]

export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions
export OMP_NUM_THREADS ?= 2

.PHONY: setup quickstart test test-old check format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)  # Debian: package python3-venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "$(SPEC)"
	touch $(STAMP)

quickstart: setup
	$(BIN)/python scripts/quickstart.py

test: setup
	$(BIN)/python -m pytest -m "not gpu and not slow and not network and not old_transformers"

# The light core under the transformers of the original LLaVA and the last of 4.x, and folders going between the three.
OLD := 4.37 4.57

test-old: setup $(OLD:%=.venv-%/.installed)
	for version in $(OLD); do \
	  PYTHONPATH=. .venv-$$version/bin/python -m pytest -W default tests/tower || exit 1; \
	done
	$(BIN)/python -m pytest -m old_transformers tests/cross_version

.venv-%/.installed: tests/cross_version/requirements-%.txt
	test -x .venv-$*/bin/pip || $(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' $<)"
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf runs build *.egg-info
