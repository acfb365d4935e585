"""Prompt files: how they render, which examples a request sees, what provenance calls them."""

import hashlib
import json
from importlib.resources import files

import pytest
from jinja2 import UndefinedError

from datagen.synthesize.parse import query_problem, sample_problem, task_problem
from datagen.synthesize.prompts import Prompt, load_prompt

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


def test_seed_tasks_and_samples_keep_the_rules() -> None:
    for example in load_prompt("task").examples:
        found = task_problem(**example["output"], topic=example["topic"], examples="")
        assert (found, len(example["output"]["labels"])) == (None, example["count"])
    for example in load_prompt("sample").examples:
        text, label = example["output"]["text"], example["label"]
        assert sample_problem(text, label, examples="") is None
        assert label in example["labels"].split(", ")


def test_answers_of_all_examples_are_known_to_the_rule_against_copies() -> None:
    known = json.loads(load_prompt("doc2query").answers())
    assert {"query": "Into which sea does the Nile flow?"} in known
