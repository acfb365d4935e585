"""What an LLM might answer, from prompt and schema alone: `EndpointServer(reply=reply)`."""

import hashlib
import json
import random
from collections.abc import Mapping
from typing import Any

WORDS = [
    "harbour", "lantern", "orchard", "thunder", "velvet", "compass", "meadow", "granite",
    "whistle", "saddle", "copper", "ribbon", "mitten", "parsley", "anchor", "beacon", "cinder",
    "dapple", "ember", "fathom", "gable", "hinge", "island", "juniper", "kettle", "lattice",
    "marble", "needle", "oyster", "pebble", "quarry", "rafter", "sickle", "thistle", "umber",
    "valley", "willow", "yarrow",
]  # fmt: skip


def reply(body: Mapping[str, Any]) -> str:
    """A JSON answer that fits the schema: drawn words, some of the prompt's document among them."""
    said = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    draw = random.Random(hashlib.sha256(said.encode()).digest())
    schema = body["response_format"]["json_schema"]["schema"]
    if {"task", "tasks"} & set(schema["properties"]):
        return json.dumps(_tasks(schema, draw, topic=said.split("\n")))
    if "misleading_labels" in schema["properties"]:
        label, *others = draw.sample(WORDS[:8], 3)
        text = " ".join(draw.sample(WORDS[8:], 14))
        return json.dumps({"text": text, "label": label, "misleading_labels": others})
    shown = said.split("Document:")[-1].split("\n")[0]
    document = [word for word in shown.split() if word.isalpha() and len(word) >= 6]
    return json.dumps(_value(schema, draw, document))


def _tasks(schema: Mapping[str, Any], draw: random.Random, *, topic: list[str]) -> dict[str, Any]:
    """A task about the topic, which a line of the prompt names, with labels if asked for."""
    (about,) = [line.split(": ", 1)[1] for line in topic if line.startswith(("Texts: ", "Topic: "))]
    properties = schema["properties"]
    item = properties.get("task") or properties["tasks"]["items"]
    first = item["pattern"].split(")")[0].removeprefix("^(").split("|")[0]
    task = f"{first} {about} by the {draw.choice(WORDS)} and the {draw.choice(WORDS)} in it."
    if "labels" not in properties:
        return {"tasks": [task]}
    return {"task": task, "labels": draw.sample(WORDS[10:], properties["labels"]["minItems"])}


def _value(schema: Mapping[str, Any], draw: random.Random, document: list[str]) -> Any:
    if "enum" in schema:
        return draw.choice(schema["enum"])
    if schema["type"] == "object":
        return {key: _value(part, draw, document) for key, part in schema["properties"].items()}
    if schema["type"] == "array":
        count = schema.get("minItems", 1)
        return [_value(schema["items"], draw, document) for _ in range(count)]
    if schema["type"] == "integer":
        return schema.get("minimum", 1)
    words = draw.sample(document, min(4, len(document))) + draw.sample(WORDS, 3)
    return " ".join(words)[: schema.get("maxLength", 200)]
