# Everything happens in .venv, which is made once and used again. `make` alone lists the targets.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test slow gpu check format docs bench lock audit clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

demo: .venv/installed ## train DPSH with 48 bits on real images, write codes, report mAP: minutes on a CPU
	$(BIN)/deephash train method=dpsh bits=48

test: .venv/developing ## the test suite: minutes on a CPU
	$(BIN)/python -m pytest -n 2

slow: .venv/developing ## the tests that take long: packaging, kills, servers that do not answer
	$(BIN)/python -m pytest -n 2 -m slow

# With the packages of another interpreter, where nothing can be installed: make gpu BIN=/usr/bin
gpu: $(if $(filter .venv/bin,$(BIN)),.venv/developing) ## test and measure an NVIDIA GPU, in at most six minutes
	$(BIN)/python3 benchmarks/gpu.py

check: .venv/developing ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: .venv/developing ## bring the code into style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/developing ## write docs/methods.md from the methods' files, and docs/commands.md from the help texts
	$(BIN)/python -c 'import pathlib, deephash_cli.commands.methods as m; pathlib.Path("docs/methods.md").write_text(m.document())'
	$(BIN)/python -c 'import pathlib, deephash_cli.cli.document as c; pathlib.Path("docs/commands.md").write_text(c.document())'

bench: .venv/developing ## evaluation, search, training and encoding side by side with bare loops and other libraries: minutes
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/asymmetric.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/start.py

lock: .venv/tools ## write requirements.lock again, with the newest versions that pyproject.toml allows
	.venv/tools/bin/uv pip compile --quiet --universal --generate-hashes --upgrade --python-version 3.11 --extra dev \
		--custom-compile-command 'make lock' --output-file requirements.lock pyproject.toml

audit: .venv/tools ## look up known security holes of what requirements.lock names; needs the network
	.venv/tools/bin/pip-audit --disable-pip --strict --require-hashes --requirement requirements.lock

clean: ## remove what was built; runs/ and .venv stay
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

# The versions that were tested, each file checked against its SHA-256. Only then the project itself.
.venv/developing: .venv/bin/python pyproject.toml requirements.lock
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@ .venv/installed

.venv/tools: .venv/bin/python
	$(PYTHON) -m venv .venv/tools
	.venv/tools/bin/python -m pip install --quiet uv pip-audit
	@touch $@
