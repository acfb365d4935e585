"""The card of a model and its ModelMeta: training data by source, merges, and names of anyone."""

import json
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from mteb.models.model_meta import ModelMeta
from tiny_encoder import tiny_export, tiny_model, tiny_tokenizer
from tiny_mix import document, row, write_rows, write_tiny_mix

from trainer.card import META, README, model_meta, read_card, write_card
from trainer.export import export_folder, export_model
from trainer.merge import merge
from trainer.prompts import PROMPTS
from trainer.train import StageConfig, TrainConfig, train
from trainer.training_data import training_data

STAGES = tuple(
    StageConfig(name=name, negatives=1, learning_rate=1e-3, batch_size=32, max_length=64)
    for name in ("pretrain", "finetune")
)


def meta_of(folder: str | Path) -> ModelMeta:
    """The file as mteb reads it: unknown licences, languages and fields are errors."""
    return ModelMeta(loader=None, **json.loads((Path(folder) / META).read_text()))


def trained(place: Path, mix: str, name: str, **options: object) -> str:
    if not (place / "base").exists():
        tiny_export(place / "base", card={"base_model": "small-llm", "licence": "Apache-2.0"})
    config = TrainConfig(
        mix=mix, base=str(place / "base"), output=str(place / name), stages=STAGES, threads=1,
        dtype="float32", **options,
    )  # fmt: skip
    train(config)
    return config.output


def test_sources_are_counted_over_all_stages(tmp_path):
    mix = write_tiny_mix(tmp_path / "mix")
    found = training_data(mix, ["pretrain", "finetune"])
    lines = [(s["task"], s["source"], s["rows"]) for s in found["sources"]]
    assert lines == [
        ("bitext", "bitext-pairs", 13), ("retrieval", "moons", 53), ("sts", "sts-pairs", 13)
    ]  # fmt: skip
    assert found["sources"][0]["languages"] == ["eng_Latn"]
    (only,) = training_data(mix, ["pretrain"])["sources"]
    assert (only["source"], only["rows"], only["origin"]) == ("moons", 40, "public")


def test_a_trained_model_names_its_base_and_its_data(tmp_path):
    model = trained(tmp_path, write_tiny_mix(tmp_path / "mix"), "run", matryoshka=True)
    text = (Path(model) / README).read_text()
    assert "license: apache-2.0" in text and "base model: small-llm" in text
    assert "trained to be cut to 8, 16, 32 values" in text
    assert "| retrieval | moons | public | 53 | eng\\_Latn | not stated |" in text
    assert "- stage pretrain, steps 2, rows 40" in text
    meta = meta_of(model)
    assert (meta.embed_dim, meta.max_tokens, meta.license) == ([8, 16, 32], 64, "apache-2.0")
    assert meta.training_datasets == {"moons", "bitext-pairs", "sts-pairs"}
    assert (meta.languages, meta.adapted_from) == (["eng-Latn"], "small-llm")
    parameters = sum(p.numel() for p in tiny_model().parameters())
    assert (meta.n_parameters, meta.n_embedding_parameters) == (parameters, 400 * 32)


def test_a_merge_names_the_mixes_of_all_its_models(tmp_path):
    other = write_rows(
        tmp_path / "other",
        [document(f"text {i}") for i in range(4)],
        pretrain=[row(f"query {i}", [i], [(i + 1) % 4], source="planets") for i in range(4)],
        finetune=[row("query 0", [0], [1], source="planets")],
    )
    first = trained(tmp_path, write_tiny_mix(tmp_path / "mix"), "first")
    runs = [first, trained(tmp_path, other, "second"), trained(tmp_path, other, "third", seed=1)]
    merge(runs, str(tmp_path / "merged"))
    card = read_card(str(tmp_path / "merged"))
    assert len(card["mixes"]) == 2 and "stages" not in card
    text = (tmp_path / "merged" / README).read_text()
    assert "weighted mean of the weights of 3 models" in text and "- first, weight 0.3333" in text
    assert meta_of(tmp_path / "merged").training_datasets == {
        "moons", "bitext-pairs", "sts-pairs", "planets"
    }  # fmt: skip


def test_an_export_of_an_export_knows_what_the_first_one_knew(tmp_path):
    model = trained(tmp_path, write_tiny_mix(tmp_path / "mix"), "run")
    export_folder(model, str(tmp_path / "again"), max_length=32, licence="MIT")
    assert read_card(str(tmp_path / "again")) == {**read_card(model), "licence": "MIT"}
    assert meta_of(tmp_path / "again").max_tokens == 32


HOSTILE = "x`](javascript:alert(1)) | <img src=x onerror=alert(1)>\n# Title {{ 7 * 7 }}"


def test_names_of_anyone_are_text(tmp_path):
    source = {
        "task": "retrieval", "source": HOSTILE, "origin": "public", "rows": 1,
        "licences": [HOSTILE], "languages": [],
    }  # fmt: skip
    card = {
        "base_model": HOSTILE, "licence": "mit\nsecret: yes", "about": HOSTILE,
        "mixes": [{"digest": "c0ffee", "sources": [source]}],
        "stages": [{"stage": HOSTILE}], "merged": [HOSTILE],
    }  # fmt: skip
    export_model(
        tiny_model(), tiny_tokenizer(), str(tmp_path / "m"), max_length=64, prompts=PROMPTS,
        card=card,
    )  # fmt: skip
    text = (tmp_path / "m" / README).read_text()
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "mit\nsecret: yes"
    page = MarkdownIt().enable("table").render(body)
    assert "<a " not in page and "<img" not in page and page.count("<h1>") == 1
    assert page.count("<tr>") == 2 and "49" not in page
    assert page.count("javascript:alert(1)") == 6


@pytest.mark.parametrize(
    ("licence", "known"), [("Gemma", "gemma"), ("MIT", "mit"), ("llama3.2", None), (None, None)]
)
def test_a_licence_that_mteb_does_not_list_is_not_said(tmp_path, licence, known):
    write_card(Path(tiny_export(tmp_path / "m")), {"licence": licence})
    assert meta_of(tmp_path / "m").license == known


def test_languages_are_those_that_people_speak():
    facts = {"parameters": 1, "embedding_parameters": 1, "bytes": 4, "longest": 8, "width": 2}
    source = {"source": "s", "origin": "synthetic", "languages": ["python_Zyyy", "deu_Latn"]}
    meta = ModelMeta(loader=None, **model_meta({"mixes": [{"sources": [source]}]}, facts))
    assert (meta.languages, meta.training_datasets, meta.embed_dim) == (["deu-Latn"], None, 2)
