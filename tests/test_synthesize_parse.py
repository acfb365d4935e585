"""Rules on answers, each with the text that a reader would reject too."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.synthesize.engine import Response
from datagen.synthesize.parse import (
    copies,
    label_in_text,
    labels_problem,
    parse,
    query_problem,
    query_schema,
    related,
    sample_problem,
    task_problem,
    task_schema,
    text_problem,
)

BEES = "Honey bees dance on the comb; the angle of the dance tells the direction of a meadow."
CODE = "def read_unicodestring4(f):\n    n = read_uint4(f)\n    return str(f.read(n), 'utf-8')"


def answer(text: str, *, finished: bool = True, problem: str = "") -> Response:
    return Response(text=text, finished=finished, problem=problem)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (answer('{"query":"Why do bees dance?"}'), None),
        (answer('{"query":"Why do bees dance'), "invalid_json"),
        (answer('{"query":"Why do bees', finished=False), "truncated"),
        (
            answer('{"query":"' + "a b " * 40 + '"}'),
            "truncated",
        ),  # the schema's 160 letters ended it
        (answer('{"question":"Why do bees dance?"}'), "invalid_json"),
        (answer('{"query":["Why","do"]}'), "invalid_json"),
        (answer('["Why do bees dance?"]'), "invalid_json"),
        (answer("", problem="prompt_too_long"), "prompt_too_long"),
        (answer("", problem="engine_error"), "engine_error"),
    ],
)
def test_an_answer_is_the_json_that_was_asked_for(response: Response, reason: str | None) -> None:
    value, found = parse(response, query_schema(code=False))
    assert found == reason
    assert value == ({"query": "Why do bees dance?"} if reason is None else {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("How do bees tell where a meadow is?", None),
        ("bees!", "too_short"),
        ("???!!!???", "too_short"),
        ("蜜蜂跳舞", None),
        ("bee " * 100, "too_long"),
        ("As an AI, I have no opinion on bees.", "meta_text"),
        ("Here is a question about bees.", "meta_text"),
        ("What does the document say of bees?", "meta_text"),
        ("What is this passage about?", "meta_text"),
        ("I'm sorry, but I have nothing to say.", "refused"),
        ("I cannot help with bees today.", "refused"),
        ("A question of 6 to 10 words", "template_leak"),
        ("Query: how do bees dance", "template_leak"),
        ("Dear [your name], bees dance.", "template_leak"),
        ("Ask {{ text }} of the bees", "template_leak"),
        ("A flower is a flower that is a flower that is a flower", "repetitive"),
        ("debug message, debug message, debug message", "repetitive"),
    ],
)
def test_no_text_speaks_of_its_making(text: str, reason: str | None) -> None:
    assert text_problem(text) == reason


@pytest.mark.parametrize(
    ("query", "document", "reason"),
    [
        ("In which direction is the meadow?", BEES, None),
        ("bee dance direction", BEES, None),
        ("the angle of the dance tells the direction", BEES, "copies_document"),
        ("How do I sort the files of a folder?", BEES, "unrelated"),
        ("Into which sea does the Nile flow?", BEES, "copies_example"),
        ("decode a unicode string from a file", CODE, None),
        ("remove duplicates from a list of tuples", CODE, "unrelated"),
    ],
)
def test_a_query_is_about_its_document(query: str, document: str, reason: str | None) -> None:
    examples = '[{"query": "Into which sea does the Nile flow?"}]'
    assert query_problem(query, document, examples=examples, grounded=True) == reason


def test_a_large_llm_may_find_other_words_than_the_document() -> None:
    found = query_problem("insect navigation by waggling", BEES, examples="", grounded=False)
    assert found is None


def test_relation_looks_into_identifiers_and_into_scripts_without_blanks() -> None:
    assert related("parse the headers", "def parseHTTPHeaders(lines): ...")
    assert related("unicode string length", "read_unicodestring4")
    assert related("蜜蜂为什么跳舞", "蜜蜂在蜂巢上跳舞")
    assert not related("蜜蜂为什么跳舞", "图书馆星期天关门")
    assert not related("what is it?", "what is it?")  # no content word at all


def test_keywords_may_be_taken_from_the_document_but_sentences_may_not() -> None:
    assert not copies("hairy cell leukemia", "Signs of hairy cell leukemia include weakness.")
    assert copies(
        "signs of hairy cell leukemia include", "Signs of hairy cell leukemia include it."
    )
    long = "whether the signs of hairy cell leukemia include weakness and fever at night"
    assert copies(long, "The signs of hairy cell leukemia include weakness and fever in children.")


@pytest.mark.parametrize(
    ("text", "label", "reason"),
    [
        ("The benches by the pond are broken again.", "parks", None),
        ("Our parks are full of broken benches.", "parks", "label_in_text"),
        ("All Parks close at nine in the evening.", "parks", "label_in_text"),
        ("He parksides with nobody at the council.", "parks", None),
        ("We waited an hour for the key.", "displeased", "copies_example"),
    ],
)
def test_a_sample_does_not_name_its_label(text: str, label: str, reason: str | None) -> None:
    assert sample_problem(text, label, examples="We waited an hour for the key.") == reason


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["traffic", "parks", "lost property"], None),
        (["traffic"], "bad_labels"),
        (["traffic", "traffic"], "bad_labels"),
        (["travel", "travel related"], "bad_labels"),
        (["concerned", "concerning"], "bad_labels"),
        (["1st", "2nd"], "bad_labels"),
        (["news of the", "other"], "bad_labels"),
        (["good", "chicken, lamb, pasta"], "bad_labels"),
        (["gut", "schlecht"], None),
    ],
)
def test_labels_are_different_short_phrases(labels: list[str], reason: str | None) -> None:
    assert labels_problem(labels) == reason


@pytest.mark.parametrize(
    ("task", "labels", "reason"),
    [
        ("Identify the emotion in a political speech.", ["anger", "hope"], None),
        ("Determine the subject of a speech.", ["speech", "music"], "bad_labels"),
        ("Identify the kind of diary entry.", ["anger", "hope"], "unrelated"),
        ("Name the sport of a speech.", ["tennis", "golf"], "copies_example"),
    ],
)
def test_a_task_is_about_its_topic_and_new(
    task: str, labels: list[str], reason: str | None
) -> None:
    examples = '[{"task": "Name the sport.", "labels": ["golf", "tennis", "chess"]}]'
    assert task_problem(task, labels, topic="political speeches", examples=examples) == reason


def test_the_schema_of_a_task_asks_for_as_many_labels_as_were_drawn() -> None:
    labels = task_schema(3)["properties"]["labels"]
    assert (labels["minItems"], labels["maxItems"]) == (3, 3)


@given(st.text(max_size=80), st.text(max_size=80))
def test_rules_take_any_text(text: str, document: str) -> None:
    problem = query_problem(text, document, examples="[]", grounded=False)
    assert problem != "copies_example"
    assert problem is not None or len(text) >= 4


@given(st.from_regex(r"[a-z]{2,9}( [a-z]{2,9}){0,2}", fullmatch=True))
def test_a_label_is_found_wherever_it_stands(label: str) -> None:
    assert all(label_in_text(label, text) for text in (label, f"So {label}.", f"{label.upper()}!"))
