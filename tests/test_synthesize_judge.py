"""One LLM grades the rows of another."""

import json

import pytest
from written_rows import row, table

from datagen.schema import UserError
from datagen.store import Folder, encode_shard
from datagen.synthesize.call import Response
from datagen.synthesize.judge import Judge, is_low, judge_block
from datagen.synthesize.kinds import check_prompts
from datagen.synthesize.kinds.judge import JUDGED, JudgeKind, judge_schema
from datagen.synthesize.llm import LLM
from datagen.synthesize.parse import parse
from datagen.synthesize.prompts import load_prompt

JUDGE = LLM(name="judge-8b", model="/models/judge", licence="Apache-2.0", languages=("eng", "deu"))
WRITER = LLM(name="writer-1b", model="/models/writer", licence="Apache-2.0")


def grades(relevance: int, naturalness: int, verdict: str = "keep") -> dict:
    return {"relevance": relevance, "naturalness": naturalness, "verdict": verdict}


@pytest.mark.parametrize(
    ("value", "low"),
    [
        (grades(5, 5), False),
        (grades(3, 3), False),
        (grades(2, 5), True),
        (grades(5, 2), True),
        (grades(5, 5, "drop"), True),
    ],
)
def test_low_grades(value, low):
    assert is_low(value) == low


def test_the_examples_are_answers_by_the_schema():
    assert [prompt.name for prompt in check_prompts(["judge"])] == ["judge"]
    for example in load_prompt("judge").examples:
        response = Response(text=json.dumps(example["output"]), finished=True)
        assert parse(response, judge_schema()) == (example["output"], None)


@pytest.mark.parametrize("value", [grades(6, 5), grades(5, 5, "maybe"), {"relevance": 5}])
def test_other_answers_are_none(value):
    response = Response(text=json.dumps(value), finished=True)
    assert parse(response, judge_schema()) == ({}, "invalid_json")


@pytest.fixture
def folder(tmp_path) -> Folder:
    rows = [
        row("writer-1b/retrieval/0", "How do bees tell where flowers are?", instruction="Find it."),
        row("writer-1b/retrieval/1", "Wo sind Blumen?", query_language="deu", title="Bees"),
        row("writer-1b/retrieval/2", "Où sont les fleurs ?", query_language="fra"),
        row("judge-8b/retrieval/0", "its own row"),
    ]
    place = Folder(str(tmp_path))
    place.write_bytes("written-00000.arrow", encode_shard(table(rows)))
    return place


def block(folder: Folder, *, faults: dict | None = None, share: float = 1.0):
    return judge_block(
        JUDGE,
        Judge(llm=JUDGE.name, share=share),
        folder,
        ["written-00000.arrow"],
        faults=faults or {},
        index=3,
        seed=0,
        block_requests=8,
        prompts={},
    )


def test_rows_of_others_in_known_languages_are_asked_about(folder):
    found = block(folder)
    assert found["place"] == "judge-8b/judge/writer-1b/retrieval/000000"
    assert [one["request"] for one in found["requests"]] == [
        "judge-8b/judge/writer-1b/retrieval/0",
        "judge-8b/judge/writer-1b/retrieval/1",
    ]


def test_rows_with_a_fault_and_those_beyond_the_share_are_not(folder):
    (one,) = block(folder, faults={"writer-1b/retrieval/0": "round_trip"})["requests"]
    assert one["written"] == "writer-1b/retrieval/1"
    assert block(folder, share=1e-9) is None


def test_a_row_becomes_a_call_and_its_answer_grades(folder):
    asked = block(folder)
    kind = JudgeKind(JUDGE, asked)
    for drawn in asked["requests"]:
        call = kind.call(drawn, [])
        assert call is not None
        text = call.prompt.text(call.values, call.turn)
        pair = kind.pairs[drawn["written"]]
        assert f"Query: {pair['query']}\n" in text
        assert (pair["title"] or "") + "\n" * bool(pair["title"]) + pair["text"] in text
        assert {"eng": "English", "deu": "German"}[drawn["language"]] in text
        assert kind.call(drawn, [grades(5, 5)]) is None
        found = kind.row(drawn, [grades(1, 5)])
        assert set(found) == set(JUDGED.names)
        assert (found["written"], found["relevance"]) == (drawn["written"], 1)


@pytest.mark.parametrize(
    "judge",
    [Judge(llm="gone"), Judge(llm="judge-8b", share=0), Judge(llm="judge-8b", lowest=6)],
)
def test_a_judge_that_cannot_judge(judge):
    with pytest.raises(UserError, match="judge-8b"):
        judge.of([JUDGE, WRITER])
    assert Judge(llm="judge-8b").of([JUDGE, WRITER]) is JUDGE
    with pytest.raises(UserError):
        Judge(llm="judge-8b").of([JUDGE])  # nobody is left to write
