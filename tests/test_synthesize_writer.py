"""From the answers of a unit to rows, rejected rows and a ledger that counts both."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from datagen.packaged import PACKAGED
from datagen.schema import DOCUMENT, PAIR, QUARANTINE, UserError, document_id
from datagen.steps import check_ledger
from datagen.store import Folder, write_shard
from datagen.synthesize import LLM, synthesize, write_tasks
from datagen.synthesize.engine import Request, Response
from datagen.synthesize.kinds import RetrievalKind, SampleKind
from datagen.synthesize.writer import read_answers, units_of

ONE = LLM(name="One", model="smollm2-135m-instruct", licence="Apache-2.0", temperature=0.7, seed=7)
TEXT = "The keeper of the lighthouse writes the weather into a book.\n\n  Every evening, at six."


@pytest.fixture
def unit(tmp_path: Path) -> dict:
    key = document_id("Lamp", TEXT)
    row = {"doc_id": key, "cluster": key, "title": "Lamp", "text": TEXT, "source": "keeper"}
    row |= {"origin": "public", "task": "retrieval", "language": "eng", "script": "Latn"}
    folder = Folder(str(tmp_path))
    shard = write_shard(
        folder, "documents", 0, pa.Table.from_pylist([row], schema=DOCUMENT), DOCUMENT
    )
    knobs = {"type": "question", "words": "6 to 10 words", "difficulty": "for a student"}
    place = {"shard": shard.name, "row": 0, "language": "eng"}
    requests = [{"request": f"one/retrieval/{i}", "turn": i, **place, **knobs} for i in range(4)]
    return {"folder": folder.uri, "grounded": True, "requests": requests}


def answers_of(unit: dict, kind: RetrievalKind | SampleKind, *texts: str) -> list:
    asked: list[tuple[dict, Request, Response]] = []
    for drawn, text in zip(unit["requests"], texts, strict=True):
        asked.append((drawn, kind.request(drawn), Response(text=text, finished=True)))
    return asked


def test_a_good_query_makes_a_pair_with_its_document_as_it_stands(unit: dict) -> None:
    kind = RetrievalKind(ONE, unit)
    unit["requests"] = unit["requests"][:1]
    query = '{"query": "Who  writes down the weather?"}'
    result = read_answers(kind, "One/retrieval", answers_of(unit, kind, query), {})
    pair = result.tables["pairs"].to_pylist()[0]
    assert (pair["query"], pair["title"], pair["text"]) == (
        "Who writes down the weather?",
        "Lamp",
        TEXT,
    )
    assert (pair["source"], pair["task"], pair["origin"]) == (
        "synthetic_retrieval",
        "retrieval",
        "synthetic",
    )
    assert (pair["document_language"], pair["document_script"]) == ("eng", "Latn")
    assert pair["licence"] == "Apache-2.0"
    made = pair["provenance"]
    assert (made["row"], made["llm"], made["llm_licence"]) == (
        "one/retrieval/0",
        "One",
        "Apache-2.0",
    )
    assert made["prompt"].startswith("doc2query@") and len(made["prompt"]) == len("doc2query@") + 8
    assert made["seed_document"] == document_id("Lamp", TEXT)
    assert (json.loads(made["sampling"])["temperature"], made["seed"]) == (0.7, 7)


def test_a_bad_answer_costs_its_own_row_and_is_counted(unit: dict) -> None:
    kind = RetrievalKind(ONE, unit)
    texts = (
        '{"query": "Who writes down the weather?"}',
        "Who writes?",
        '{"query": "who writes down the WEATHER?"}',
        '{"query": "Which bird sings at night?"}',
    )
    result = read_answers(kind, "One/retrieval", answers_of(unit, kind, *texts), {})
    row = result.ledger[0]
    assert (row.unit, row.rows_in, row.kept) == ("requests", 4, 1)
    assert row.dropped == {"duplicate": 1, "invalid_json": 1, "unrelated": 1}
    check_ledger("synthesize", result.ledger)
    assert result.tables["pairs"].schema == PAIR
    assert result.tables["rejected"].schema == QUARANTINE
    rejected = result.tables["rejected"].to_pylist()
    assert [(r["row"], r["reason"]) for r in rejected] == [
        ("one/retrieval/1", "invalid_json"),
        ("one/retrieval/2", "duplicate"),
        ("one/retrieval/3", "unrelated"),
    ]
    assert json.loads(rejected[0]["record"])["answer"] == "Who writes?"


def test_half_a_character_costs_its_own_row(unit: dict) -> None:
    """`\\ud800` is valid in JSON and no text: Arrow would refuse the whole unit."""
    kind = RetrievalKind(ONE, unit)
    unit["requests"] = unit["requests"][:2]
    texts = ('{"query": "the weather \\ud800 book"}', '{"query": "Who writes down the weather?"}')
    result = read_answers(kind, "One/retrieval", answers_of(unit, kind, *texts), {})
    assert result.ledger[0].kept == 1
    assert sum(result.ledger[0].dropped.values()) == 1


def test_the_document_is_cut_in_the_prompt_only(unit: dict, tmp_path: Path) -> None:
    kind = RetrievalKind(ONE, unit)
    drawn = unit["requests"][0]
    kind.documents[drawn["request"]]["text"] = "weather " * 10_000
    shown = kind.request(drawn).prompt.messages(kind.request(drawn).values)[-1]["content"]
    assert shown.startswith("Document: Lamp\nweather") and len(shown) < 1_000
    assert kind.row(drawn, {"query": "Who?"})["text"] == "weather " * 10_000


def test_code_is_asked_about_with_the_prompt_for_code(unit: dict) -> None:
    kind = RetrievalKind(ONE, unit)
    drawn = unit["requests"][0]
    kind.documents[drawn["request"]] |= {"language": "python", "script": "Zyyy"}
    pair = kind.row(drawn, {"query": "write the weather"})
    assert pair["instruction"] == "Given a description, retrieve the code that does it."
    assert pair["provenance"]["prompt"].startswith("code2query@")
    assert (pair["query_language"], pair["document_language"]) == ("eng", "python")


def test_a_text_for_a_label_makes_a_pair_with_the_other_labels_as_negatives() -> None:
    drawn = {"request": "one/classification/0", "turn": 0, "language": "eng", "task_id": "t"}
    drawn |= {"task": "Identify the emotion in a diary entry.", "words": "5 to 10 words"}
    drawn |= {"labels": ["joy", "anger", "envy"], "label": "anger"}
    unit = {"requests": [drawn]}
    kind = SampleKind(ONE, unit)
    answer = '{"text": "He broke my cup and laughed."}'
    result = read_answers(kind, "One/classification", answers_of(unit, kind, answer), {})
    pair = result.tables["pairs"].to_pylist()[0]
    assert (pair["query"], pair["text"]) == ("He broke my cup and laughed.", "anger")
    assert [negative["text"] for negative in pair["negatives"]] == ["joy", "envy"]
    assert pair["instruction"] == "Identify the emotion in a diary entry."
    assert (pair["source"], pair["task"]) == ("synthetic_classification", "classification")
    assert pair["provenance"]["seed_document"] is None


def test_units_hold_so_many_requests() -> None:
    requests = [{"request": str(i)} for i in range(5)]
    units = units_of("retrieval", requests, size=2, folder="f")
    assert [len(unit["requests"]) for unit in units] == [2, 2, 1]
    assert units[0] == {"kind": "retrieval", "folder": "f", "requests": requests[:2]}


@pytest.mark.parametrize(
    ("pool", "found"),
    [((), "none"), ((ONE, ONE), "One, One"), ((LLM(name="X", model="nope", licence=""),), "nope")],
)
def test_a_bad_pool_is_refused_before_anything_loads(pool: tuple[LLM, ...], found: str) -> None:
    with pytest.raises(UserError) as error:
        write_tasks(*pool, cache="unused")
    assert error.value.exit_status == 2 and found in str(error.value)


def test_resources_do_not_change_what_a_step_is_and_weights_do() -> None:
    import dataclasses

    def identity(llm: LLM) -> object:
        documents = write_tasks(ONE, cache="unused", name="documents")
        return synthesize(documents, tasks=None, llms=[llm], cache="unused").config

    assert identity(ONE) == identity(dataclasses.replace(ONE, replicas=4, num_cpus=2.0))
    assert identity(ONE) != identity(dataclasses.replace(ONE, temperature=0.1))
    config = ONE.config()
    assert config["weights"] == PACKAGED[ONE.model].sha256
    assert json.loads(json.dumps(config)) == config


def test_an_llm_that_cannot_answer_is_refused() -> None:
    with pytest.raises(UserError, match="max_tokens 512"):
        LLM(name="One", model="m/m", licence="MIT", max_tokens=512, max_model_len=512)
