# Works on a fresh clone: every target that needs Python makes .venv and installs the pinned dependencies once.
#   make PYTHON=/path/to/python3.12 test     another interpreter (3.11 or newer)
#   PIP_EXTRA_INDEX_URL=... make test        pip's own variables work, for example for another build of torch

.DEFAULT_GOAL := help
.PHONY: help quickstart real docs test test-slow test-browser test-trackio test-peers test-load test-distributed check mutants bench clean

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
INSTALLED := $(VENV)/.installed-dev
ARGS ?=
PEERS := skyrl gem openenv verifiers

help:                ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 20

quickstart: $(INSTALLED)   ## train the built-in search agent, about a minute and a half after the install
	$(BIN)/agentrl quickstart $(ARGS)

real: $(INSTALLED)         ## train a pretrained model (135M) on real facts; 98 MB to fetch, under an hour on two cores
	$(BIN)/agentrl real $(ARGS)

docs: $(VENV)-docs/.installed    ## the documentation site, in build/site; a broken link is an error
	$(BIN)/python scripts/docs_site.py build/docs
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --quiet

test: $(INSTALLED)         ## fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: $(INSTALLED) test-trackio    ## whole runs: the quickstart, kill and resume, real processes, large inputs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'slow and not browser' --timeout=1200 $(ARGS)

test-browser: $(INSTALLED)    ## the dashboard in a real Chromium, behind nginx too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m browser $(ARGS)

test-trackio: $(VENV)-trackio/.installed    ## trackio's own databases and alerts; it cannot be installed beside the pins
	PYTHONPATH=. $(VENV)-trackio/bin/python -m pytest -o addopts= --noconftest -q -k trackio \
		tests/monitors/sources/test_binary.py tests/monitors/test_sinks.py

test-peers: $(PEERS:%=$(VENV)-%/.installed)    ## other people's packages against ours, each in its own environment
	for peer in $(PEERS); do \
		AGENTRL_PYTHON=$(CURDIR)/$(BIN)/python PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 $(VENV)-$$peer/bin/python -m pytest \
			-o addopts= --noconftest -q -rs --import-mode=importlib tests/peers -k "$$peer" || exit 1; \
	done

test-load: $(INSTALLED)    ## ten minutes of load with faults on the retriever's server
	OMP_NUM_THREADS=1 $(BIN)/python scripts/bench_retriever.py load --seconds 600

test-distributed:    ## the cluster engine with the real Ray, DeepSpeed, vLLM and OpenRLHF, on the CPU
	PYTHON="$(PYTHON)" scripts/setup_openrlhf_cpu.sh $(VENV)-dist
	OMP_NUM_THREADS=1 $(VENV)-dist/bin/python -m pytest tests/distributed -m distributed -rs --timeout=900 $(ARGS)

check: $(INSTALLED)        ## lint, format, types, Dockerfiles
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/*.Dockerfile

mutants: $(VENV)-mutants/.installed    ## small changes of the code that a test must notice; hours (ARGS=--report: what is known)
	OMP_NUM_THREADS=1 $(VENV)-mutants/bin/python scripts/mutants.py $(ARGS)

bench: $(INSTALLED)        ## the measured figures of the documentation
	@for script in scripts/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:               ## remove the environment and caches; runs/ is kept
	rm -rf $(VENV) $(VENV)-dist $(VENV)-trackio $(VENV)-skyrl $(VENV)-gem $(VENV)-openenv $(VENV)-verifiers \
		$(VENV)-docs $(VENV)-mutants .mutants build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@python="$(PYTHON)"; \
	if [ -z "$$python" ] && [ -x $(BIN)/python ]; then python=$(BIN)/python; fi; \
	for name in $$python python3.11 python3.12 python3.13 python3 python; do \
		path=$$(command -v "$$name") && "$$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
		path=; \
	done; \
	if [ -z "$$path" ]; then \
		echo "error: no Python 3.11 or newer was found; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	if [ ! -x $(BIN)/python ]; then \
		echo "making $(VENV) with $$path"; \
		"$$path" -m venv $(VENV) || { rm -rf $(VENV); \
			echo "error: $$path cannot make a virtual environment (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }; \
	fi
	@echo "installing the pinned dependencies into $(VENV), some minutes the first time"
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q agentrl envs retriever  # as pip does with what it copies
	@touch $@

$(VENV)-skyrl/.installed: $(INSTALLED)
	$(BIN)/python -m venv $(VENV)-skyrl
	$(VENV)-skyrl/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e . \
		skyrl-gym==0.4.0 pytest
	@touch $@

$(VENV)-gem/.installed: $(INSTALLED)
	$(BIN)/python -m venv $(VENV)-gem
	$(VENV)-gem/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e . \
		gem-llm==0.1.0 requests pytest
	@touch $@

$(VENV)-openenv/.installed: $(INSTALLED)    # its pins clash with ours, not with what the base needs
	$(BIN)/python -m venv $(VENV)-openenv
	$(VENV)-openenv/bin/python -m pip install -qq --disable-pip-version-check -e . openenv==0.10.0 pytest
	@touch $@

$(VENV)-verifiers/.installed: $(INSTALLED)
	$(BIN)/python -m venv $(VENV)-verifiers
	$(VENV)-verifiers/bin/python -m pip install -qq --disable-pip-version-check -e . verifiers==0.4.0 pytest
	@touch $@

$(VENV)-trackio/.installed: $(INSTALLED)
	$(BIN)/python -m venv $(VENV)-trackio
	$(VENV)-trackio/bin/python -m pip install -qq --disable-pip-version-check trackio==0.43.0 pytest
	@touch $@

$(VENV)-docs/.installed: $(INSTALLED)
	$(BIN)/python -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install -qq --disable-pip-version-check mkdocs==1.6.1 mkdocs-material==9.8.2 mkdocstrings-python==2.0.11
	@touch $@

$(VENV)-mutants/.installed: $(INSTALLED)    # mutmut, which finds the pinned packages in the first environment
	$(BIN)/python -m venv $(VENV)-mutants
	$(VENV)-mutants/bin/python -m pip install -qq --disable-pip-version-check mutmut==3.8.1
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > "$$(echo $(VENV)-mutants/lib/python3*/site-packages)/pins.pth"
	@touch $@
