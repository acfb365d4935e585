"""Answers to rows: provenance, rejected rows and a ledger that balances; no LLM needed."""

import json

import pyarrow as pa
import pytest

from datagen.schema import DOCUMENT, PAIR, UserError, document_id
from datagen.steps import Step, UnitResult, check_ledger
from datagen.store import Folder, write_shard
from datagen.synthesize import LLM, synthesize, synthesize_files, write_tasks
from datagen.synthesize.engine import Response
from datagen.synthesize.kinds import RetrievalKind, SampleKind
from datagen.synthesize.prompts import load_prompt
from datagen.synthesize.tasks import TASK, TaskKind
from datagen.synthesize.writer import Kind, read_answers, units_of

WRITER = LLM(name="Small LLM", model="smollm2-135m-instruct", licence="Apache-2.0", seed=5)
NILE = "The Nile rises in the highlands of East Africa and ends in a wide delta in Egypt."
CODE = "def lock(self):\n    self._file = open(self._path)\n    fcntl.lockf(self._file, LOCK_EX)"


def answered(kind: Kind, requests: list[dict], *answers: str) -> UnitResult:
    asked = [kind.request(drawn) for drawn in requests]
    given = [Response(text=text, finished=True) for text in answers]
    rows = list(zip(requests, asked, given, strict=True))
    return read_answers(kind, f"{WRITER.name}/{kind.name}", rows, {})


@pytest.fixture
def retrieval(tmp_path) -> tuple[RetrievalKind, list[dict]]:
    """Three requests for a text and one for code."""
    base = {"source": "s", "origin": "public", "task": "retrieval", "cluster": ""}
    rows = [
        {**base, "title": "Rivers", "text": NILE, "language": "eng", "script": "Latn"},
        {**base, "title": None, "text": CODE, "language": "python", "script": "Zyyy"},
    ]
    for row in rows:
        row["doc_id"] = document_id(row["title"], row["text"])
    shard = write_shard(
        Folder(str(tmp_path)), "documents", 0, pa.Table.from_pylist(rows, schema=DOCUMENT), DOCUMENT
    )
    knobs = {"words": "4 to 7 words", "difficulty": "for a student", "language": "eng"}
    requests = [
        {"request": f"small-llm/retrieval/{i}", "turn": i, "shard": shard.name, "row": row, **knobs}
        | {"type": kind}
        for i, (row, kind) in enumerate(
            [(0, "question"), (0, "keywords"), (0, "statement"), (1, "question")]
        )
    ]
    unit = {"folder": str(tmp_path), "grounded": True, "requests": requests}
    return RetrievalKind(WRITER, unit), requests


def test_a_query_keeps_its_document_and_says_who_wrote_it(retrieval) -> None:
    kind, requests = retrieval
    result = answered(
        kind,
        requests,
        '{"query":"Where does the  Nile end?"}',
        '{"query":"dance of the bees"}',
        '{"query":"where does the Nile end?"}',
        '{"query":"How do I lock a file?"}',
    )
    text, code = result.tables["pairs"].to_pylist()
    assert result.tables["pairs"].schema == PAIR
    assert (text["query"], text["title"], text["text"]) == (
        "Where does the Nile end?",
        "Rivers",
        NILE,
    )
    assert text["instruction"] == "Given a question, retrieve passages that answer the question."
    assert (text["task"], text["origin"], text["source"]) == (
        "retrieval",
        "synthetic",
        "synthetic_retrieval",
    )
    assert text["provenance"] == {
        "row": "small-llm/retrieval/0",
        "llm": "Small LLM",
        "llm_licence": "Apache-2.0",
        "prompt": load_prompt("doc2query").id,
        "seed_document": document_id("Rivers", NILE),
        "sampling": WRITER.sampling(),
        "seed": 5,
    }
    assert json.loads(text["provenance"]["sampling"])["temperature"] == WRITER.temperature
    assert code["provenance"]["prompt"] == load_prompt("code2query").id
    assert code["instruction"] == "Given a description, retrieve the code that does it."
    assert (code["query_language"], code["document_language"]) == ("eng", "python")


def test_rejected_answers_stay_with_their_reason_and_the_ledger_balances(retrieval) -> None:
    kind, requests = retrieval
    result = answered(
        kind,
        requests,
        '{"query":"Where does the  Nile end?"}',
        '{"query":"dance of the bees"}',
        '{"query":"where does the Nile end?"}',
        '{"query":"Where does',
    )
    rejected = result.tables["rejected"].to_pylist()
    assert [(row["row"][-1], row["reason"]) for row in rejected] == [
        ("1", "unrelated"),
        ("2", "duplicate"),
        ("3", "invalid_json"),
    ]
    assert json.loads(rejected[0]["record"])["answer"] == '{"query":"dance of the bees"}'
    ledger = result.ledger[0]
    assert (ledger.source, ledger.unit) == ("Small LLM/retrieval", "requests")
    assert (ledger.rows_in, ledger.kept) == (4, 1)
    check_ledger("synthesize", result.ledger)


def test_the_prompt_shows_the_beginning_of_a_long_document(tmp_path, retrieval) -> None:
    kind, requests = retrieval
    kind.documents[requests[0]["request"]]["text"] = "word " * 5_000
    shown = kind.request(requests[0]).values["text"]
    assert (len(shown), shown[:12]) == (600, "Rivers\nword ")


def test_a_sample_is_a_text_with_its_label_and_the_wrong_labels() -> None:
    drawn = {
        "request": "small-llm/classification/0", "turn": 0, "task": "Classify a letter.",
        "task_id": "other/task/3", "labels": ["traffic", "parks", "noise"], "label": "parks",
        "words": "5 to 10 words", "language": "eng",
    }  # fmt: skip
    result = answered(
        SampleKind(WRITER, {}),
        [drawn, {**drawn, "request": "small-llm/classification/1"}],
        '{"text":"The benches by the pond were never repaired."}',
        '{"text":"The parks are full of broken benches."}',
    )
    (row,) = result.tables["pairs"].to_pylist()
    assert (row["query"], row["text"]) == ("The benches by the pond were never repaired.", "parks")
    assert row["negatives"] == [{"title": None, "text": text} for text in ("traffic", "noise")]
    assert (row["instruction"], row["task"]) == ("Classify a letter.", "classification")
    assert result.ledger[0].dropped == {"label_in_text": 1}


def test_a_task_keeps_its_labels() -> None:
    drawn = {
        "request": "small-llm/task/0", "turn": 0, "topic": "parking fines", "aspect": "emotion",
        "count": 2, "language": "deu",
    }  # fmt: skip
    result = answered(
        TaskKind(WRITER, {}),
        [drawn],
        '{"task":"Identify the emotion in a reply to a parking fine.","labels":["anger","shame"]}',
    )
    (row,) = result.tables["tasks"].to_pylist()
    assert result.tables["tasks"].schema == TASK
    assert (row["labels"], row["language"], row["llm"]) == (["anger", "shame"], "deu", "Small LLM")


def test_units_hold_so_many_requests() -> None:
    units = units_of("task", [{"request": str(i)} for i in range(5)], size=2, folder="f")
    assert [len(unit["requests"]) for unit in units] == [2, 2, 1]
    assert all(unit["folder"] == "f" for unit in units)


def documents_step() -> Step:
    return Step(name="documents", version=1, config={}, inputs={}, work=lambda context: None)


def test_mistakes_in_the_pool_are_told_before_anything_loads(tmp_path) -> None:
    with pytest.raises(UserError, match="each with its own name"):
        write_tasks(WRITER, WRITER, cache=str(tmp_path))
    missing = LLM(name="Missing", model="no-such-model", licence="MIT")
    with pytest.raises(UserError, match="gemma3-270m") as caught:
        synthesize(documents_step(), tasks=None, llms=[missing], cache=str(tmp_path))
    assert caught.value.exit_status == 2
    with pytest.raises(UserError, match="below max_model_len"):
        LLM(name="Short", model="a/b", licence="MIT", max_model_len=50)


def test_resources_do_not_change_what_a_step_is(tmp_path) -> None:
    def config(**changes: object) -> dict:
        llm = LLM(name="One", model="gemma3-270m", licence="Gemma", **changes)
        step = synthesize(documents_step(), tasks=None, llms=[llm], cache=str(tmp_path))
        return dict(step.config)

    assert config() == config(replicas=4, num_gpus=1.0, threads=8, kv_cache_gib=4.0)
    assert config() != config(temperature=0.9)
    assert config()["llms"][0]["weights"].startswith("a5fd3b62")


@pytest.mark.parametrize("model", ["no-such-model", "all-minilm-l6-v2"])
def test_the_command_refuses_what_is_no_llm_before_it_reads(tmp_path, model: str) -> None:
    with pytest.raises(UserError, match="smollm2-135m-instruct") as caught:
        synthesize_files(
            [str(tmp_path / "absent.jsonl")], str(tmp_path / "out"), models=[model], cache="c"
        )
    assert caught.value.exit_status == 2
    assert not (tmp_path / "out").exists()


def test_the_command_wants_a_text_column(tmp_path) -> None:
    (tmp_path / "d.jsonl").write_text('{"body": "The Nile ends in a wide delta in Egypt."}\n')
    with pytest.raises(UserError, match="a column 'text'"):
        synthesize_files(
            [str(tmp_path / "d.jsonl")], str(tmp_path), models=["gemma3-270m"], cache="c"
        )
