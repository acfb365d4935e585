"""What makes a response a value: JSON of the schema, without what was thought before it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.synthesize.call import Response
from datagen.synthesize.kinds.schemas import answer as an_object
from datagen.synthesize.kinds.schemas import choice, several, text
from datagen.synthesize.parse import parse, schema_problem, strip_reasoning

QUERY = an_object(query=text(160))
NESTED = an_object(
    kind=choice(["question", "keywords"]),
    score={"type": "integer", "minimum": 0, "maximum": 5},
    groups=several(an_object(name=text(20, minimum=2), items=several(text(40), 1, 2)), 2, 3),
)


def answer(text: str, *, finished: bool = True, problem: str = "") -> Response:
    return Response(text=text, finished=finished, problem=problem)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (answer('{"query":"Why do bees dance?"}'), None),
        (answer('```json\n{"query":"Why do bees dance?"}\n```'), None),
        (answer('<think>Bees!</think>\n{"query":"Why do bees dance?"}'), None),
        (answer('{"query":"Why do bees dance'), "invalid_json"),
        (answer('{"query":"Why do bees', finished=False), "truncated"),
        (answer('{"query":"' + "a b " * 40 + '"}'), "truncated"),  # the schema's 160 letters
        (answer('{"query":"why"}'), "too_short"),
        (answer('{"query":"\\ud800\\ud800 bees"}'), "invalid_json"),  # a lone surrogate
        (answer('{"question":"Why do bees dance?"}'), "invalid_json"),
        (answer('{"query":["Why","do"]}'), "invalid_json"),
        (answer('["Why do bees dance?"]'), "invalid_json"),
        (answer("[" * 100_000), "invalid_json"),
        (answer("", problem="prompt_too_long"), "prompt_too_long"),
        (answer("", problem="engine_error"), "engine_error"),
    ],
)
def test_an_answer_is_the_json_that_was_asked_for(response: Response, reason: str | None) -> None:
    value, found = parse(response, QUERY)
    assert found == reason
    assert value == ({"query": "Why do bees dance?"} if reason is None else {})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"kind": "poem"}, "invalid_json"),
        ({"score": 6}, "invalid_json"),
        ({"score": True}, "invalid_json"),
        ({"score": 2.5}, "invalid_json"),
        ({"groups": []}, "invalid_json"),
        ({"groups": [{"name": "bee", "items": ["a dance"]}]}, "invalid_json"),
        ({"groups": [{"name": "bee"}, {"name": "owl", "items": ["a hunt"]}]}, "invalid_json"),
        ({"groups": [{"name": "x" * 20, "items": ["a dance"]}] * 2}, "truncated"),
        ({"more": 1}, "invalid_json"),
    ],
)
def test_lists_objects_choices_and_numbers_are_checked_within(
    change: dict, reason: str | None
) -> None:
    group = {"name": "bee", "items": ["a dance", "a song"]}
    value = {"kind": "question", "score": 5, "groups": [group, group]} | change
    assert parse(answer(json.dumps(value)), NESTED)[1] == reason


@pytest.mark.parametrize(
    "text",
    [
        'A "{}" alone',
        '<think>hm, {"query": "no"}</think>{"query":"yes"}',
        'so the template opened it</think>\n\n{"query":"yes"}',
        '<reasoning>\nhm\n</reasoning>\n{"query":"yes"}',
        '[THINK]hm[/THINK]{"query":"yes"}',
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>"
        '{"query":"yes"}<|return|>',
        '<|channel|>final <|constrain|>json<|message|>{"query":"yes"}',
        'analysisThe user wants JSON.assistantfinal{"query":"yes"}',
        'analysishmassistantcommentaryhmassistantfinal{"query":"yes"}',
        '{"query":"yes"}',
        '{"query":"yes"}<|im_end|>',
    ],
)
def test_what_was_thought_aloud_is_taken_off(text: str) -> None:
    assert strip_reasoning(text) == (text if text.startswith("A ") else '{"query":"yes"}')


@pytest.mark.parametrize(
    "text", ["<think>and so on", "<|channel|>analysis<|message|>and so on", "[THINK]and so on"]
)
def test_thoughts_without_an_end_leave_no_answer(text: str) -> None:
    assert strip_reasoning(text) == ""


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_that_fits_the_schema_parses(text: str) -> None:
    expected = None if 4 <= len(text) < 160 else "too_short"
    for ascii_only in (True, False):
        written = json.dumps({"query": text}, ensure_ascii=ascii_only, separators=(",", ":"))
        value, reason = parse(answer(written), QUERY)
        assert reason == expected
        assert reason or value == {"query": text}


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_any_json_is_checked_without_an_error(value: object) -> None:
    assert schema_problem(value, NESTED) == "invalid_json"
