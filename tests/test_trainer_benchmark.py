"""Benchmarks of mteb by name, and vectors of several widths from one encoding."""

import json
import time
from pathlib import Path
from typing import Any

import datasets
import mteb
import numpy as np
import pytest
from mteb.abstasks import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from tiny_encoder import tiny_export, write_task

from datagen.schema import UserError
from trainer import benchmark, text_encoder
from trainer.cli import main
from trainer.evaluate import evaluate, language_means

PAIRS = {
    "sentence1": ["the dog", "der Mond", "la lune", "two cats"],
    "sentence2": ["the dog barks", "der Mond der Erde", "a", "the cat sleeps"],
    "score": [5.0, 4.0, 0.0, 2.0],
}


class Moons(AbsTaskSTS):
    """A task as mteb's registry has them, in two languages, whose data needs no Hub."""

    metadata = TaskMetadata(
        name="Moons",
        description="Moons.",
        dataset={"path": "org/moons", "revision": "c0ffee"},
        type="STS",
        eval_splits=["test"],
        eval_langs={"en": ["eng-Latn"], "de": ["deu-Latn"]},
        main_score="cosine_spearman",
        prompt="Find the same moon",
    )
    min_score, max_score = 0, 5

    def load_data(self, **_: Any) -> None:
        turned = {**PAIRS, "score": PAIRS["score"][::-1]}
        parts = {"en": PAIRS, "de": turned}
        self.dataset = {k: {"test": datasets.Dataset.from_dict(v)} for k, v in parts.items()}
        self.data_loaded = True


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_export(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def moons(monkeypatch: pytest.MonkeyPatch) -> str:
    named = mteb.Benchmark(name="Moons(v1)", tasks=[Moons()])
    monkeypatch.setattr(mteb, "get_benchmark", {"Moons(v1)": named}.__getitem__)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    return "Moons(v1)"


def test_a_benchmark_is_scored_by_language_with_what_decided_it(
    model: str, moons: str, tmp_path: Path
) -> None:
    summary = evaluate(model, (), str(tmp_path / "scores"), benchmarks=[moons])
    (result,) = summary["tasks"]
    english, german = result["subsets"]
    assert (english["languages"], german["languages"]) == (["eng_Latn"], ["deu_Latn"])
    assert summary["languages"] == {
        "deu_Latn": german["main_score"],
        "eng_Latn": english["main_score"],
    }
    assert result["main_score"] == pytest.approx((english["main_score"] + german["main_score"]) / 2)
    assert (result["type"], result["revision"], result["folder"]) == (
        "sts", "c0ffee", "hub:org/moons",
    )  # fmt: skip
    assert result["prompts"] == {"text": "Instruct: Find the same moon\nQuery: "}
    again = evaluate(model, (), str(tmp_path / "scores"), benchmarks=[moons])
    assert again["tasks"] == summary["tasks"]  # taken over


def test_a_benchmark_has_the_scores_of_the_same_rows_in_a_folder(
    model: str, moons: str, tmp_path: Path
) -> None:
    names = {"sentence1": "text_a", "sentence2": "text_b", "score": "score"}
    tables = {"pairs": {names[k]: v for k, v in PAIRS.items()}}
    folder = write_task(tmp_path / "moons", "sts", tables, instruction="Find the same moon")
    local, hub = evaluate(model, folder, str(tmp_path / "s"), benchmarks=[moons])["tasks"]
    assert hub["subsets"][0]["scores"] == {**local["scores"], "main_score": local["main_score"]}


def test_without_a_hub_a_benchmark_is_refused_in_seconds(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    command = ["evaluate", "--model", model, "--output", str(tmp_path / "s"), "--benchmark"]
    benchmark.find_benchmarks([])  # mteb is imported before the clock starts
    started = time.monotonic()
    assert main([*command, "MTEB(eng, v2)"]) == 1
    assert time.monotonic() - started < 20
    said = capsys.readouterr().err
    assert "no answer from http://127.0.0.1:9" in said and "--tasks" in said
    assert main([*command, "MTEB(eng, v3)"]) == 2
    assert "Did you mean: MTEB(eng" in capsys.readouterr().err
    assert main(["evaluate", "--model", model, "--output", "x"]) == 2


def test_widths_are_scored_from_one_encoding(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score at a width is that of vectors cut by hand; no text is encoded twice."""
    from scipy.stats import spearmanr
    from sentence_transformers import SentenceTransformer

    a, b = PAIRS["sentence1"], PAIRS["sentence2"]
    tables = {"pairs": {"text_a": a, "text_b": b, "score": PAIRS["score"]}}
    folder = write_task(tmp_path / "moons", "sts", tables, instruction=None)
    seen: list[str] = []
    embed = text_encoder.TextEncoder._embed

    def count(self: Any, texts: list[str], side: str, prompt: str) -> np.ndarray:
        seen.extend(texts)
        return embed(self, texts, side, prompt)

    monkeypatch.setattr(text_encoder.TextEncoder, "_embed", count)
    monkeypatch.setattr(text_encoder, "MAX_KEPT_VECTORS", 2)  # more than these are kept for widths
    (result,) = evaluate(model, folder, str(tmp_path / "s"), widths=[8, 4])["tasks"]
    assert sorted(seen) == sorted({*a, *b})
    encoder = SentenceTransformer(model)
    for width in (8, 4):
        cut = [encoder.encode(texts)[:, :width] for texts in (a, b)]
        cut = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in cut]
        wanted = spearmanr(PAIRS["score"], (cut[0] * cut[1]).sum(1)).statistic
        assert result["matryoshka"][str(width)]["main_score"] == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(UserError, match=r"widths \[32\]"):
        evaluate(model, folder, str(tmp_path / "s"), widths=[32])


def test_the_same_weights_with_another_pooling_are_another_model(
    model: str, tmp_path: Path
) -> None:
    import shutil

    tables = {
        "pairs": {
            "text_a": PAIRS["sentence1"], "text_b": PAIRS["sentence2"], "score": PAIRS["score"],
        }
    }  # fmt: skip
    folder = write_task(tmp_path / "moons", "sts", tables)
    (mean,) = evaluate(model, folder, str(tmp_path / "s"))["tasks"]
    other = tmp_path / "other"
    shutil.copytree(model, other)
    place = other / "1_Pooling" / "config.json"
    place.write_text(
        place.read_text()
        .replace('mean_tokens": true', 'mean_tokens": false')
        .replace('lasttoken": false', 'lasttoken": true')
    )
    (last,) = evaluate(str(other), folder, str(tmp_path / "s"))["tasks"]
    assert last["model"]["sha256"] == mean["model"]["sha256"]
    assert last["scores"] != mean["scores"]


def test_a_table_per_language(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def result(task: str, languages: list[str], score: float) -> dict[str, Any]:
        return {"task": task, "type": "sts", "languages": languages, "main_score": score}

    one = [result("a", ["eng_Latn"], 0.5), result("b", ["eng_Latn", "deu_Latn"], 0.7)]
    assert language_means(one) == {"deu_Latn": 0.7, "eng_Latn": pytest.approx(0.6)}
    two = [result("b", ["eng_Latn", "deu_Latn"], 0.9)]
    for name, results in (("one", one), ("two", two)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    assert main(["compare", "--languages", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [cell.strip() for cell in rows[2]] == ["deu_Latn", "1", "70.00", "90.00"]
    assert [cell.strip() for cell in rows[3]] == ["eng_Latn", "1", "70.00", "90.00"]
