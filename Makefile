# Everything sets itself up: in a fresh clone `make demo` and `make test` need Python 3.11 or newer,
# git and make. The environment is made once, from the pinned and hashed sets in requirements/, and
# again only when the content of those or of pyproject.toml changes.

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
ARGS :=
TEST = $(PY) -m pytest
SEEDS := 1
SERVERS := 300
CHANGES := 1

# Stamps carry a checksum of what they stand for: a new date on a file is not a change.
key = $(firstword $(shell cat $(1) | cksum))
TOOLS := $(VENV)/.tools-$(call key,requirements/build.txt)
RUN := $(VENV)/.run-$(call key,requirements/build.txt requirements/run.txt pyproject.toml)
DEV := $(VENV)/.dev-$(call key,requirements/*.txt pyproject.toml)

# Bytecode that nobody keeps makes each of the many Pythons that the tests start compile it anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo quick test coverage budgets fuzz simulate truth plane servers cluster bench bench-plane bench-agent tables lint types format build \
  lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1|/' \
	  | while IFS='|' read -r target text; do printf '  make %-11s %s\n' "$$target" "$$text"; done
	@echo '  PYTHON=python3.12 picks the interpreter, ARGS="-k drift -x" goes to pytest'

demo: $(RUN) ## From git push to Ready, healed and pruned, on an embedded cluster
	@$(PY) -m gitops_mcp demo

# The simulations start nothing, and take their time.
QUICK := -m "not real" --ignore-glob='*_seeds.py' --ignore=tests/simulation/test_deaths.py

quick: $(DEV) ## Check style, imports and types, and run the tests that start nothing
	@$(MAKE) --no-print-directory -j2 lint types
	@$(TEST) -q -n auto --dist worksteal $(QUICK) $(ARGS)

test: $(DEV) ## Run all tests on all cores
	@$(TEST) -n auto --dist loadfile $(ARGS) || { \
	  echo "== What failed, once more and alone: real clusters keep their own time"; \
	  $(TEST) --last-failed --last-failed-no-failures none $(ARGS); }

coverage: $(DEV) ## Run the tests, and report what they and the processes they start ran of the code
	@rm -f .coverage .coverage.*
	@$(MAKE) --no-print-directory test TEST="$(PY) -m coverage run -m pytest"
	@$(PY) -m coverage combine --quiet && $(PY) -m coverage report

truth: $(DEV) ## What diff says of generated servers is so: SERVERS=300 SEEDS="7 8"
	@set -e; for seed in $(SEEDS); do echo "== seed $$seed"; \
	  TRUTH_SEED=$$seed TRUTH_SERVERS=$(SERVERS) TRUTH_CHANGES=$(CHANGES) \
	  $(PY) -m pytest -q tests/truth/test_truth.py $(ARGS); done

simulate: SEEDS := 1000
simulate: $(DEV) ## Play seeded simulations: SEEDS=1000 of them, or SEED=17 with its trace
	@PYTHONPATH=tests $(PY) -m simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) $(ARGS)

fuzz: COUNT := 1000000
fuzz: $(DEV) ## Read COUNT=1000000 files that nobody would write, within a time and memory budget
	@PYTHONPATH=tests $(PY) -m fuzzing --count $(COUNT) $(ARGS)

plane: $(DEV) ## Build the real control plane that some tests start (Go; five minutes, once)
	@$(PY) tests/plane.py build

servers: $(DEV) ## Build other people's MCP servers that some tests start (npm, Go; two minutes, once)
	@$(PY) tests/realservers.py build

cluster: $(DEV) ## Run the real control plane until Ctrl-C; prints what makes kubectl use it
	@$(PY) tests/plane.py run

budgets: $(DEV) ## Measure what hostile input costs, as ratios to ordinary input
	@$(PY) benchmarks/budgets.py

bench: $(DEV) ## Run the benchmarks and print their tables
	@set -e; for name in verbs load_render source passes waiting walk; do \
	  echo "== $$name"; $(PY) benchmarks/$$name.py; done

bench-plane: plane ## Measure 1,000 servers on real control planes, beside kubectl
	@$(PY) benchmarks/control_plane.py

bench-agent: plane ## Measure the living agent on real control planes: ARGS="--servers 200"
	@$(PY) benchmarks/agent.py $(ARGS)

tables: $(DEV) ## Write the tables and manifests that docs/ and deploy/ take from the code
	@PYTHONPATH=tests $(PY) tests/project/test_docs.py
	@PYTHONPATH=tests $(PY) tests/agent/test_observability.py
	@PYTHONPATH=tests $(PY) tests/picture.py
	@$(PY) -m gitops_mcp crd > deploy/crd.yaml

lint: $(DEV) ## Check style, layout and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache --no-logo

types: $(DEV) ## Check the types
	@$(PY) -m mypy

format: $(DEV) ## Rewrite style and layout
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

build: $(DEV) ## Build the sdist, and the wheel from it, into dist/
	@rm -rf dist
	@$(PY) -m build --no-isolation

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --custom-compile-command 'make lock' $(ARGS)

lock: $(TOOLS) ## Pin what pyproject.toml asks for; ARGS=--upgrade takes the newest of everything
	@$(COMPILE) pyproject.toml -o requirements/run.txt
	@$(COMPILE) --group build -c requirements/run.txt -o requirements/build.txt
	@$(COMPILE) pyproject.toml --group dev -c requirements/run.txt -c requirements/build.txt \
	  -o requirements/dev.txt
	@set -e; for name in python-1.9 python-1 python-2; do \
	  $(COMPILE) tests/servers/$$name.in -o tests/servers/$$name.txt; done

clean: ## Remove the environment, the caches and what was built
	@rm -rf $(VENV) dist build .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Some distributions ship Python without venv or ensurepip, and a version manager's shims exist for
# versions that it does not offer: so each candidate is asked.
SUITS = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
NONE_SUITS = error: none of $(PYTHONS) is Python 3.11 or newer with venv and ensurepip \
  (Debian: apt install python3-venv); name one: make PYTHON=python3.12 …
FIND_PYTHON = python=; for each in $(PYTHONS); do \
  if $$each -c '$(SUITS)' 2>/dev/null; then python=$$each; break; fi; done; \
  test -n "$$python" || { echo '$(NONE_SUITS)' >&2; exit 1; }

# uv takes seconds where pip takes half a minute; pip knows mirrors that uv was not told of.
INSTALL = install() { $(BIN)/uv pip install --quiet --python $(PY) "$$@" \
  || { echo 'uv could not; pip tries' >&2; \
  $(PY) -m pip install --quiet --disable-pip-version-check "$$@"; }; }; install

$(TOOLS):
	@$(FIND_PYTHON); echo "Making $(VENV) with $$python (once)" >&2; \
	  rm -rf $(VENV) && $$python -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes \
	  -r requirements/build.txt
	@touch $@

$(RUN): | $(TOOLS)
	@rm -f $(VENV)/.run-* $(VENV)/.dev-*
	@$(INSTALL) --require-hashes -r requirements/run.txt
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): | $(RUN)
	@$(INSTALL) --require-hashes -r requirements/dev.txt
	@touch $@
