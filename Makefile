# Everything a user or contributor types. `make quickstart` is the whole method in minutes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SPEC := .[train,quant,eval,dev]

export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions
export OMP_NUM_THREADS ?= 2

# The original LLaVA's own environment; torch comes first, so that the CPU build is taken.
LLAVA_PYTHON ?= python3.11
LLAVA_BIN := .venv-llava/bin
LLAVA_TORCH := torch==2.13.0
LLAVA_SPEC := transformers==4.37.2 tokenizers==0.15.1 accelerate==0.21.0 peft==0.10.0 deepspeed==0.19.8 \
	sentencepiece shortuuid requests pillow protobuf pytest

.PHONY: setup quickstart test test-llava test-old test-serve check format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV) (1.9 GB, a minute or two)"
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)  # Debian: package python3-venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "$(SPEC)"
	touch $(STAMP)

quickstart: setup
	$(BIN)/python scripts/quickstart.py

test: setup
	$(BIN)/python -m pytest -m "not gpu and not slow and not network and not old_transformers"

# The encoder, and models made here, inside the unmodified original code (haotian-liu/LLaVA @ c121f04):
# LLAVA_REPO=PATH make test-llava
test-llava: setup .venv-llava/.installed
	PYTHONPATH=$(CURDIR):$(LLAVA_REPO) $(LLAVA_BIN)/python -m pytest -W default -rs tests/with_llava tests/tower

.venv-llava/.installed: Makefile
	test -x $(LLAVA_BIN)/pip || $(LLAVA_PYTHON) -m venv --clear .venv-llava
	$(LLAVA_BIN)/python -m pip install --quiet --disable-pip-version-check $(LLAVA_TORCH)
	$(LLAVA_BIN)/python -m pip install --quiet --disable-pip-version-check $(LLAVA_TORCH) $(LLAVA_SPEC)
	touch $@

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

# `transformers serve` on loopback, asked for answers: fastapi, uvicorn and openai beside what .venv has, by a .pth file.
test-serve: setup .venv-serve/.installed
	PYTHONPATH=. .venv-serve/bin/python -m pytest -rs tests/answering/test_server_transformers.py

.venv-serve/.installed: constraints.txt Makefile | $(STAMP)
	test -x .venv-serve/bin/pip || $(BIN)/python -m venv --clear .venv-serve
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	  "$$(.venv-serve/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beside.pth"
	.venv-serve/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt fastapi openai uvicorn
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
