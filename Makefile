# `make demo` and `make test` need nothing but Python 3.10 or newer with venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install demo docs test lint clean

help:
	@echo "make demo     install, train on the embedded digits, evaluate, predict"
	@echo "make test     install, check style and types, run the tests"
	@echo "make docs     build the documentation as a site: site/index.html"
	@echo "make install  install into .venv only"
	@echo "make clean    remove .venv and what demo made"

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: .venv/installed
	@rm -rf demo
	$(BIN)/convnext train digits --output demo
	$(BIN)/convnext evaluate demo/digits
	$(BIN)/convnext datasets digits --to-folder demo/images
	$(BIN)/convnext predict demo/digits 'demo/images/test/7/000*.png' --top-k 3
	@echo "The trained model, its report and its pictures are in demo/digits; the images in demo/images."
	@echo "Next: $(BIN)/convnext train folder --data.root YOUR_IMAGES"

docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/mkdocs build --strict

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	! command -v nvidia-smi || CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES:-0} $(BIN)/pytest -m cuda -rs
	$(BIN)/pytest --numprocesses auto --durations 30

clean:
	rm -rf .venv demo site
