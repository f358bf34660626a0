PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed
SUBPACKAGES := modeling processing training datasets_builders eval_tasks

.PHONY: demo vqa_rad test lint format types wheel clean

demo: $(INSTALLED)
	$(BIN)/python examples/miniature/demo.py

vqa_rad: $(INSTALLED)
	$(BIN)/python examples/vqa_rad/demo.py

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The installed layout, as links: a type checker does not follow an editable install's import hook.
types: $(INSTALLED)
	rm -rf build/typing
	mkdir -p build/typing/instructblip
	ln -s $(CURDIR)/src/instructblip/* $(addprefix $(CURDIR)/,$(SUBPACKAGES)) build/typing/instructblip/
	$(BIN)/pyrefly check --summary=none --output-format=min-text

# build/ would carry files that were renamed since into the wheel.
wheel: $(INSTALLED)
	rm -rf build dist
	$(BIN)/pip wheel --no-deps --wheel-dir dist .

$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[eval,video,datatrove,dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
