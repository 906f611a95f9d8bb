# Every target that needs Python creates .venv and installs first; a second run starts at once.
# Serving needs less than development, and is installed sooner without the rest.
VENV := .venv
BIN := $(VENV)/bin
SERVING := $(VENV)/.installed
DEVELOPING := $(VENV)/.installed-dev
PYTHON ?= python3
# Installed where no torch is there yet; may carry pip options, such as an index with CPU-only builds.
TORCH_SPEC ?= torch==2.14.1 torchvision==0.29.1
# Everything else has the versions and hashes of requirements/*.txt, which `make lock` resolves.
INSTALL_LOCKED = $(BIN)/pip install --no-deps --require-hashes -r

.DEFAULT_GOAL := help
.PHONY: help install serve test test-long test-lowest check check-long coverage mutants lint type format lock
.PHONY: docs bench load e2e chaos fuzz clients gpu sbom

help:
	@echo "make install | serve | test | test-long | test-lowest | check | check-long | coverage | mutants"
	@echo "     lint | type | format | lock | sbom | docs | bench | load | e2e | chaos | fuzz | clients | gpu"

install: $(DEVELOPING)

$(SERVING): pyproject.toml requirements/serve.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo "Python 3.11 to 3.13 is needed; say make PYTHON=python3.x" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch, torchvision' 2>/dev/null || $(BIN)/pip install $(TORCH_SPEC)
	$(INSTALL_LOCKED) requirements/serve.txt
	$(BIN)/pip install --no-deps -e .
	@$(BIN)/python -c 'import torch, torchvision' || { \
		echo "torch and torchvision do not fit together: remove $(VENV), and give both in TORCH_SPEC" >&2; exit 1; }
	@touch $@

$(DEVELOPING): $(SERVING) requirements/dev.txt
	$(INSTALL_LOCKED) requirements/dev.txt
	@touch $@

serve: $(SERVING)
	$(BIN)/safelight serve

# Whole files go to a worker (tests/workers.py); TEST_WORKERS=0 runs everything in one process.
TEST_WORKERS ?= 2
PARALLEL = --numprocesses $(TEST_WORKERS) --dist loadscope --no-loadscope-reorder
PYTEST = $(BIN)/pytest $(PARALLEL)

test: $(DEVELOPING)
	$(PYTEST)

# All tests in their long forms.
test-long: $(DEVELOPING)
	$(PYTEST) --long

# What continuous integration runs. The tests come last, so that their summary is the last line.
check: lint type test

check-long: lint type test-long

# Lines and branches that the tests run, also in processes that they start.
coverage: $(DEVELOPING)
	mkdir -p build/coverage
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PARALLEL)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage html --quiet
	$(BIN)/coverage report

lint: $(DEVELOPING)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(DEVELOPING)
	$(BIN)/mypy

format: $(DEVELOPING)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch, torchvision and what torch brings come from TORCH_SPEC, so that a build can be chosen.
OF_TORCH := torch torchvision triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas \
	nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile \
	nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink \
	nvidia-nvshmem-cu13 nvidia-nvtx
COMPILE = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate
LOCK = $(COMPILE) pyproject.toml --constraint requirements/torch.txt \
	$(addprefix --no-emit-package ,$(OF_TORCH))

# A part of the tests with the lowest versions that pyproject.toml allows, in an environment of its own, which
# borrows torch from .venv.
LOWEST := build/lowest
BORROWED = $(wildcard $(addprefix $(VENV)/lib/python3*/site-packages/, \
	torch* functorch* triton* nvidia* cuda*))
LOWEST_TESTS := tests/service/http tests/service/usage tests/service/telemetry tests/models/text \
	tests/pipeline/engine/test_batch.py tests/pipeline/diffusion/test_diffusers_schedulers.py \
	tests/pipeline/evaluation/test_evaluation.py tests/loadtests/test_loadtests.py tests/deploy/test_kuberay.py

test-lowest: $(DEVELOPING)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip compile pyproject.toml --quiet --resolution lowest-direct --python $(BIN)/python --no-header \
		--constraint requirements/torch.txt $(addprefix --no-emit-package ,$(OF_TORCH)) \
		$(addprefix --extra ,dev load mcp otel postgres t5 valkey) -o $(LOWEST)/requirements.txt
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps -r $(LOWEST)/requirements.txt
	ln -sfn $(abspath $(BORROWED)) $(LOWEST)/lib/python3*/site-packages/
	PYTHONPATH=$(CURDIR)/src $(LOWEST)/bin/python -m pytest $(LOWEST_TESTS)

lock: $(DEVELOPING)
	$(LOCK) -o requirements/serve.txt
	$(LOCK) --extra dev --extra docs --extra load --extra mcp --extra otel --extra postgres --extra t5 --extra valkey -o requirements/dev.txt
	$(LOCK) --extra mcp --extra otel --extra postgres --extra t5 --extra valkey -o requirements/image.txt
	$(LOCK) --extra cuda --extra mcp --extra otel --extra postgres --extra t5 --extra valkey -o requirements/image-cuda.txt
	$(COMPILE) requirements/clients.in -o requirements/clients.txt
	npm update --prefix tests/clients/node --package-lock-only --save

# What is installed to serve, as CycloneDX: one file for each lock file that is shipped.
SBOM := build/sbom
SHIPPED := serve image image-cuda

sbom: $(DEVELOPING)
	mkdir -p $(SBOM)
	for name in $(SHIPPED); do \
		cat requirements/$$name.txt requirements/torch.txt | $(BIN)/cyclonedx-py requirements - \
		--pyproject pyproject.toml --output-reproducible --of JSON -o $(SBOM)/$$name.cdx.json || exit 1; \
	done

# Clients of the service that would pin other versions than ours: tests/clients runs them from here.
CLIENTS := build/clients
OF_NODE := $(addprefix tests/clients/node/,package.json package-lock.json .npmrc)
CLIENT_LOCKS := requirements/clients.txt tests/clients/node/package-lock.json

clients: $(CLIENTS)/.installed

$(CLIENTS)/.installed: $(CLIENT_LOCKS) | $(DEVELOPING)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(CLIENTS)/venv
	$(BIN)/uv pip install --quiet --python $(CLIENTS)/venv/bin/python --no-deps --require-hashes \
		-r requirements/clients.txt
	cp $(OF_NODE) $(CLIENTS)
	npm ci --prefix $(CLIENTS) --ignore-scripts --no-audit --no-fund --loglevel error
	sha256sum $(CLIENT_LOCKS) > $@

# A part of `make test-long`.
e2e chaos: $(DEVELOPING)
	$(BIN)/pytest tests/$@ --long

bench: $(DEVELOPING)
	$(BIN)/python -m tests.bench.update
	$(BIN)/safelight bench --check

# Ten minutes on a GPU, which it needs: deploy/gpu.md.
gpu: $(DEVELOPING)
	$(BIN)/python -m tests.gpu

load: $(DEVELOPING)
	$(BIN)/python -m loadtests

# Tables and plots of README.md and docs/, from docs/data and from the code.
docs: $(DEVELOPING)
	$(BIN)/python -m docs.figures

# Requests made from the OpenAPI schema, against every check of schemathesis.
fuzz: $(DEVELOPING)
	$(BIN)/python -m tests.fuzz

mutants: $(DEVELOPING)
	$(BIN)/python -m tests.mutants
