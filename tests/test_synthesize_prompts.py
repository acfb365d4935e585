"""Prompt files: how they render, which examples a request sees, what provenance calls them."""

import hashlib
from importlib.resources import files
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from datagen.schema import UserError
from datagen.synthesize.kinds.code import code_problem
from datagen.synthesize.languages import languages
from datagen.synthesize.prompts import Prompt, check_prompt, load_prompt, prompt_names
from datagen.synthesize.rules import (
    copies,
    distinct_problem,
    document_problem,
    labels_problem,
    length_problem,
    query_problem,
    sample_problem,
    similar_problem,
    task_problem,
    text_problem,
)

SMALL = Prompt(
    name="small",
    digest="ab12cd34ef" + "0" * 54,
    system="You write queries.",
    template="{{ text }}\nA {{ type }}:",
    examples=(
        {"text": "Water boils.", "type": "question", "output": {"query": "When?"}},
        {"text": "Ice melts.", "type": "keywords", "output": {"query": "ice"}},
        {"text": "Fog lifts.", "type": "question", "output": {"query": "Why?"}},
    ),
    shots=1,
    match="type",
)
ASKED = {"text": "Snow falls.", "type": "question"}


def test_a_chat_shows_examples_as_turns() -> None:
    assert SMALL.messages(ASKED) == [
        {"role": "system", "content": "You write queries."},
        {"role": "user", "content": "Water boils.\nA question:"},
        {"role": "assistant", "content": '{"query":"When?"}'},
        {"role": "user", "content": "Snow falls.\nA question:"},
    ]


def test_a_base_model_reads_one_running_text() -> None:
    assert SMALL.text(ASKED) == (
        "You write queries.\n\n###\n\n"
        'Water boils.\nA question:\nAnswer:\n{"query":"When?"}\n\n###\n\n'
        "Snow falls.\nA question:\nAnswer:\n"
    )


def test_examples_share_the_type_of_the_request_and_take_turns() -> None:
    shown = [SMALL.shown(ASKED, turn)[0]["text"] for turn in range(3)]
    assert shown == ["Water boils.", "Fog lifts.", "Water boils."]


def test_examples_in_the_language_of_the_request_come_last() -> None:
    prompt = load_prompt("query")
    for turn in range(4):
        values = {"type": "question", "language": "German"}
        assert prompt.shown(values, turn)[-1]["language"] == "German"
        values = {"type": "question", "language": "English"}
        assert prompt.shown(values, turn)[-1]["language"] == "English"


def test_provenance_names_the_file_by_its_hash() -> None:
    data = files("datagen.synthesize").joinpath("prompts/doc2query.yaml").read_bytes()
    assert load_prompt("doc2query").id == f"doc2query@{hashlib.sha256(data).hexdigest()[:8]}"


def test_a_variable_that_a_request_lacks_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="type"):
        Prompt.messages(
            Prompt(**{**SMALL.__dict__, "match": None, "examples": ()}), {"text": "Snow falls."}
        )


@pytest.mark.parametrize("name", ["doc2query", "code2query"])
@pytest.mark.parametrize("kind", ["question", "keywords", "statement"])
def test_every_type_of_query_has_examples_that_keep_the_rules(name: str, kind: str) -> None:
    prompt = load_prompt(name)
    values = {"text": "x", "type": kind, "words": "3", "difficulty": "easy", "language": "English"}
    shown = prompt.shown(values, 0)
    assert len(shown) == prompt.shots
    assert prompt.text(values).count("###") == prompt.shots + 1
    for example in shown:
        query = example["output"]["query"]
        assert query_problem(query, example["text"], examples="", grounded=True) is None
        assert length_problem(query, example["words"]) is None


def test_chosen_queries_keep_the_rules_and_every_type_has_examples() -> None:
    prompt = load_prompt("query")
    for example in prompt.examples:
        query = example["output"]["query"]
        assert query_problem(query, example["text"], examples="", grounded=False) is None
        assert length_problem(query, example["words"]) is None
    types = [example["type"] for example in prompt.examples]
    assert {types.count(kind) for kind in types} == {2} and len(set(types)) == 5
    for example in load_prompt("configure").examples:
        output = example["output"]
        assert output["persona"] in example["personas"] and output["type"] in example["types"]
        assert output["difficulty"] in example["difficulties"]
        assert output["length"] in example["lengths"]


def test_seed_tasks_and_samples_keep_the_rules() -> None:
    for example in load_prompt("task").examples:
        found = task_problem(**example["output"], topic=example["topic"], examples="")
        assert (found, len(example["output"]["labels"])) == (None, example["labels"])
    for example in load_prompt("tasks").examples:
        assert len(example["output"]["tasks"]) == example["tasks"]
        for task in example["output"]["tasks"]:
            assert task_problem(task, [], topic="", examples="", grounded=False) is None
    for example in load_prompt("sample").examples:
        text, label = example["output"]["text"], example["label"]
        assert sample_problem(text, label, examples="") is None
        assert label in example["labels"].split(", ")
    for example in load_prompt("labelled").examples:
        output = example["output"]
        assert sample_problem(output["text"], output["label"], examples="") is None
        assert labels_problem([output["label"], *output["misleading_labels"]]) is None


@pytest.mark.parametrize("shape", ["short_long", "long_short", "short_short", "long_long"])
def test_examples_from_scratch_are_as_long_as_they_say(shape: str) -> None:
    for example in load_prompt(shape).examples:
        output = example["output"]
        assert distinct_problem(*output.values()) is None
        for name, text in output.items():
            words = example["query_words" if name == "query" else "document_words"]
            assert length_problem(text, words) is None
            assert document_problem(text, maximum=2000) is None
        pair = sorted((output["query"], output["positive"]), key=len)
        assert not copies(*pair) and similar_problem(*pair) is None


def test_examples_of_pairs_keep_the_rules() -> None:
    for name in ("sts", "bitext"):
        for example in load_prompt(name).examples:
            texts = list(example["output"].values())
            assert distinct_problem(*texts) is None
            for text in texts[:2]:
                assert length_problem(text, example["unit"]) is None
                assert text_problem(text, maximum=600) is None
    for example in load_prompt("translate").examples:
        assert distinct_problem(example["text"], example["output"]["translation"]) is None
    for example in load_prompt("cluster").examples:
        categories = example["output"]["categories"]
        assert len(categories) == example["categories"]
        assert labels_problem([category["name"] for category in categories]) is None
        for category in categories:
            for item in category["items"]:
                assert sample_problem(item, category["name"], examples="") is None
                assert length_problem(item, example["words"]) is None


def test_examples_of_code_keep_the_rules() -> None:
    for name in ("code", "translate_code"):
        for example in load_prompt(name).examples:
            programming = example["programming"].lower()
            assert code_problem(example["output"]["code"], programming, examples="") is None


def test_prompts_call_languages_by_their_english_names() -> None:
    names = {language.name for language in languages().values()}
    for name in prompt_names():
        for example in load_prompt(name).examples:
            for key in ("language", "document_language"):
                assert example.get(key, "English") in names


def test_answers_of_all_examples_are_known_to_the_rule_against_copies() -> None:
    assert "Into which sea does the Nile flow?" in load_prompt("doc2query").answers().split("\n")
    assert "best = values[0]\n" in load_prompt("code").answers()  # as text, not as JSON
    assert "nostalgia" in load_prompt("task").answers().split("\n")


OWN = """\
system: You write queries.
input: "{{ text }} in {{ language }}"
examples:
  - {text: Water boils., language: English, output: {query: "When?"}}
shots: 1
"""
FIELDS = ("text", "language", "type")


def own(tmp_path: Path, text: str) -> str:
    path = tmp_path / f"own{len(list(tmp_path.iterdir()))}.yaml"
    path.write_text(text)
    return str(path)


def test_an_own_prompt_is_read_from_its_path(tmp_path) -> None:
    prompt = load_prompt(own(tmp_path, OWN))
    check_prompt(prompt, FIELDS, ("query",))
    assert prompt.id == "own0@" + hashlib.sha256(OWN.encode()).hexdigest()[:8]
    values = {"text": "Ice melts.", "language": "German"}
    assert prompt.messages(values)[-1]["content"] == "Ice melts. in German"


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("{{ language }}", "{{ lang }}", "uses lang"),
        ("{{ language }}", "{{ language }", "line 1 of input"),
        ("language: English, output", "output", "example 1: it does not render"),
        ('output: {query: "When?"}', "answer: 1", "example 1: no output"),
        ('{query: "When?"}', '{question: "When?"}', "example 1: output has question"),
        ("shots: 1", "shots: 1\nmatch: kind", "uses kind"),
        ("shots: 1", "shots: 1\nmatch: type", "example 1: no type"),
        ("shots: 1", "shots: one", "shots missing, of the wrong type"),
        ("shots: 1\n", "", "shots missing"),
        ("shots: 1", "shots: 1\nshow: 2", "show missing, of the wrong type, or not known"),
        ("system: You write queries.", "system: [", "while parsing"),
        ("{{ text }}", "{{ text.__class__.__mro__ }}", "it does not render"),
    ],
)
def test_a_mistake_in_an_own_prompt_is_told_in_three_parts(
    tmp_path, old: str, new: str, found: str
) -> None:
    assert old in OWN
    path = own(tmp_path, OWN.replace(old, new))
    with pytest.raises(UserError) as caught:
        check_prompt(load_prompt(path), FIELDS, ("query",))
    assert found in caught.value.found and caught.value.exit_status == 2
    assert caught.value.expected and caught.value.do


@pytest.mark.parametrize("name", ["doc2qery", "no/such/file.yaml"])
def test_a_prompt_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError) as caught:
        load_prompt(name)
    assert name in caught.value.found and "doc2query" in caught.value.expected
