"""One LLM grades the rows of another."""

import json

import pytest
from written_rows import row, table

from datagen.schema import PAIR
from datagen.store import Folder, encode_shard
from datagen.synthesize.call import Response
from datagen.synthesize.judge import (
    JudgeKind,
    grade_problem,
    judge_requests,
    judge_schema,
    judged_rule,
)
from datagen.synthesize.llm import LLM
from datagen.synthesize.parse import parse
from datagen.synthesize.prompts import check_prompt, load_prompt
from datagen.synthesize.select import select

JUDGE = LLM(name="judge-8b", model="/models/judge", licence="Apache-2.0", languages=("eng", "deu"))


def grades(relevance: int, naturalness: int, verdict: str = "keep") -> dict:
    return {"relevance": relevance, "naturalness": naturalness, "verdict": verdict}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (grades(5, 5), None),
        (grades(3, 3), None),
        (grades(2, 5), "judged_low"),
        (grades(5, 2), "judged_low"),
        (grades(5, 5, "drop"), "judged_low"),
    ],
)
def test_low_grades(value, reason):
    assert grade_problem(value) == reason


def test_the_examples_are_answers_by_the_schema():
    prompt = load_prompt("judge")
    check_prompt(prompt, JudgeKind.prompts["judge"].fields, JudgeKind.prompts["judge"].answer)
    for example in prompt.examples:
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
    place.write_bytes("pairs-00000.arrow", encode_shard(table(rows)))
    return place


def test_rows_of_others_in_known_languages_are_asked_about(folder):
    found = judge_requests(JUDGE, folder, ["pairs-00000.arrow"], count=10, seed=0)
    assert [one["request"] for one in found] == ["judge-8b/judge/0", "judge-8b/judge/1"]
    assert {one["written"] for one in found} == {"writer-1b/retrieval/0", "writer-1b/retrieval/1"}
    assert judge_requests(JUDGE, folder, ["pairs-00000.arrow"], count=1, seed=0) == found[:1]


def test_a_row_comes_back_unchanged_or_with_a_reason(folder):
    asked = judge_requests(JUDGE, folder, ["pairs-00000.arrow"], count=10, seed=0)
    kind = JudgeKind(JUDGE, {"kind": "judge", "requests": asked, "folder": folder.uri})
    for drawn in asked:
        call = kind.call(drawn, [])
        assert call is not None
        text = call.prompt.text(call.values, call.turn)
        pair = kind.row(drawn, [grades(5, 5)])
        assert f"Query: {pair['query']}\n" in text
        assert (pair["title"] or "") + "\n" * bool(pair["title"]) + pair["text"] in text
        assert {"eng": "English", "deu": "German"}[drawn["language"]] in text
        assert kind.call(drawn, [grades(5, 5)]) is None
        assert kind.problem(drawn, [grades(5, 5)]) is None
        assert kind.problem(drawn, [grades(1, 5)]) == "judged_low"
        assert set(pair) == set(PAIR.names)
        assert pair["provenance"]["row"] == drawn["written"]


def test_grades_as_a_rule_on_rows():
    pairs = table([row(f"a/retrieval/{i}", "x") for i in range(3)])
    rule = judged_rule({"a/retrieval/0": grades(1, 1), "a/retrieval/1": grades(4, 4)})
    found = select(pairs, [rule])
    assert found.reasons.to_pylist() == ["judged_low", None, None]
    assert found.not_judged == {"judged_low": 1}
