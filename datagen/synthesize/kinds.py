"""Two kinds of synthetic pairs: a query for a document, and a text for a label."""

from collections.abc import Mapping
from typing import Any

from datagen.schema import PAIR, document_id
from datagen.store import Folder, open_shard
from datagen.synthesize.draw import CODE_SCRIPT
from datagen.synthesize.engine import Request
from datagen.synthesize.llm import LLM
from datagen.synthesize.parse import query_problem, query_schema, sample_problem, sample_schema
from datagen.synthesize.prompts import LANGUAGES, Prompt, load_prompt
from datagen.synthesize.writer import Drawn

SHOWN_CHARACTERS = 600  # of a document in the prompt: 150 to 200 tokens; the pair keeps all of it

INSTRUCTIONS = {
    "question": "Given a question, retrieve passages that answer the question.",
    "keywords": "Given keywords, retrieve passages about them.",
    "statement": "Given a statement, retrieve passages that confirm or refute it.",
}
CODE_INSTRUCTION = "Given a description, retrieve the code that does it."


class RetrievalKind:
    """A query that a seed document answers; the document is the positive as it stands."""

    name, table, schema = "retrieval", "pairs", PAIR

    def __init__(self, llm: LLM, unit: Drawn):
        self.llm, self.grounded = llm, unit["grounded"]
        folder = Folder(unit["folder"])
        shards = {name: open_shard(folder, name) for name in sorted(_shards(unit))}
        self.documents = {
            drawn["request"]: shards[drawn["shard"]].slice(drawn["row"], 1).to_pylist()[0]
            for drawn in unit["requests"]
        }

    def _prompt(self, drawn: Drawn) -> Prompt:
        code = self.documents[drawn["request"]]["script"] == CODE_SCRIPT
        return load_prompt("code2query" if code else "doc2query")

    def request(self, drawn: Drawn) -> Request:
        document = self.documents[drawn["request"]]
        title = f"{document['title']}\n" if document["title"] else ""
        shown = (title + document["text"])[:SHOWN_CHARACTERS]
        values = {**drawn, "text": shown, "language": language_name(drawn["language"])}
        schema = query_schema(code=document["script"] == CODE_SCRIPT)
        return Request(prompt=self._prompt(drawn), values=values, schema=schema, turn=drawn["turn"])

    def problem(self, drawn: Drawn, value: Mapping[str, Any]) -> str | None:
        document = self.documents[drawn["request"]]
        return query_problem(
            value["query"],
            f"{document['title'] or ''}\n{document['text']}",
            examples=self._prompt(drawn).answers(),
            grounded=self.grounded,
        )

    def row(self, drawn: Drawn, value: Mapping[str, Any]) -> dict[str, Any]:
        document = self.documents[drawn["request"]]
        code = document["script"] == CODE_SCRIPT
        seed = document_id(document["title"], document["text"])
        return {
            "source": "synthetic_retrieval",
            "task": "retrieval",
            "origin": "synthetic",
            "instruction": CODE_INSTRUCTION if code else INSTRUCTIONS[drawn["type"]],
            "query": " ".join(value["query"].split()),
            "title": document["title"],
            "text": document["text"],
            "query_language": drawn["language"],
            "query_script": "Latn" if code else document["script"],
            "document_language": document["language"],
            "document_script": document["script"],
            "licence": self.llm.licence,
            "provenance": provenance(self.llm, drawn, self._prompt(drawn), seed_document=seed),
        }


class SampleKind:
    """A text for one label of a task; the label is the positive, the other labels are negatives."""

    name, table, schema = "classification", "pairs", PAIR

    def __init__(self, llm: LLM, unit: Drawn):
        self.llm, self.prompt = llm, load_prompt("sample")

    def request(self, drawn: Drawn) -> Request:
        values = {
            **drawn,
            "labels": ", ".join(drawn["labels"]),
            "language": language_name(drawn["language"]),
        }
        return Request(
            prompt=self.prompt, values=values, schema=sample_schema(), turn=drawn["turn"]
        )

    def problem(self, drawn: Drawn, value: Mapping[str, Any]) -> str | None:
        return sample_problem(value["text"], drawn["label"], examples=self.prompt.answers())

    def row(self, drawn: Drawn, value: Mapping[str, Any]) -> dict[str, Any]:
        others = [label for label in drawn["labels"] if label != drawn["label"]]
        return {
            "source": "synthetic_classification",
            "task": "classification",
            "origin": "synthetic",
            "instruction": drawn["task"],
            "query": " ".join(value["text"].split()),
            "title": None,
            "text": drawn["label"],
            "negatives": [{"title": None, "text": label} for label in others],
            "query_language": drawn["language"],
            "document_language": "eng",  # labels and task sentences are English
            "document_script": "Latn",
            "licence": self.llm.licence,
            "provenance": provenance(self.llm, drawn, self.prompt, seed_document=None),
        }


def _shards(unit: Drawn) -> set[str]:
    return {drawn["shard"] for drawn in unit["requests"]}


def language_name(code: str) -> str:
    """English name of a language for a prompt; the code itself where it has none here."""
    return LANGUAGES.get(code, code)


def provenance(
    llm: LLM, drawn: Drawn, prompt: Prompt, *, seed_document: str | None
) -> dict[str, Any]:
    """Who wrote a row, with which prompt, for which document, and how it was sampled."""
    return {
        "row": drawn["request"],
        "llm": llm.name,
        "llm_licence": llm.licence,
        "prompt": prompt.id,
        "seed_document": seed_document,
        "sampling": llm.sampling(),
        "seed": llm.seed,
    }
