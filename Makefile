# make demo   set up everything and run the whole method on this machine's CPU
# make test   set up everything and run every check
# make help   the other targets
#
# Both work on a fresh machine with Python 3.10 to 3.12, git and make, in either order.

PYTHON ?= $(shell for python in python3.11 python3.12 python3.10 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BASE_VENV := .venv-base
TRL_VENV := .venv-trl
TRL_BEFORE_FUSED_HEAD := 1.13.0
BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
IMAGES := train generate cpu
IMAGE_VERSIONS = $(shell grep -E '^[A-Z][A-Z0-9_]*=[A-Za-z0-9._:@/+-]+$$' docker/versions.env)

.PHONY: help demo test check unit base-install format experiments bench bench-data images $(IMAGES:%=image-%) clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

demo: $(VENV)/.installed ## run the whole method on a CPU (about 5 minutes after the installation)
	$(BIN)/irpo run examples/arithmetic_cpu.yaml

test: check unit ## every check: linters, types, import rules, tests with coverage

check: $(VENV)/.installed base-install ## linters, types, import rules; the base install imports without torch
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/*.Dockerfile

unit: $(VENV)/.installed ## tests with coverage
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

base-install: $(BASE_VENV)/.installed
	$(BASE_VENV)/bin/python tests/contracts/base_install.py

format: $(VENV)/.installed ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

experiments: $(VENV)/.installed ## the three methods over three seeds on the demo task (about an hour)
	$(BIN)/python benchmarks/methods.py

bench: bench-data $(VENV)/.installed $(TRL_VENV)/.installed ## training against TRL: make bench DATA=GSM8K/train.jsonl
	$(BIN)/python -m benchmarks.training --data "$(DATA)"

bench-data:
	@test -f "$(DATA)" || { echo "GSM8K's training file is not at '$(DATA)': make bench DATA=path/to/train.jsonl"; exit 1; }

images: $(IMAGES:%=image-%) ## build the container images, or one: make images IMAGES=train

$(IMAGES:%=image-%): image-%:
	docker build --file docker/$*.Dockerfile $(IMAGE_VERSIONS:%=--build-arg %) \
		--label org.opencontainers.image.revision=$$(git rev-parse HEAD) --tag irpo-megatron:$* .

clean: ## remove what was installed and computed here
	rm -rf $(VENV) $(BASE_VENV) $(TRL_VENV) runs build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# A stamp is written only after a whole installation, so that one that broke off is taken up again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.12 was found: install one, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) --editable ".[train,report,math,hub,server,dev]"
	touch $@

$(BASE_VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.12 was found: install one, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(BASE_VENV)
	$(BASE_VENV)/bin/python $(PIP_INSTALL) --editable .
	touch $@

$(TRL_VENV)/.installed: benchmarks/trl-requirements.txt constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.12 was found: install one, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(TRL_VENV)
	$(TRL_VENV)/bin/python $(PIP_INSTALL) --requirement benchmarks/trl-requirements.txt
	$(TRL_VENV)/bin/python $(PIP_INSTALL) --no-deps --upgrade --target $(TRL_VENV)/trl-$(TRL_BEFORE_FUSED_HEAD) trl==$(TRL_BEFORE_FUSED_HEAD)
	touch $@
