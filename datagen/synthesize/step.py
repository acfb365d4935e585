"""Synthesis as two resumable steps: tasks first, then queries and samples.

The LLMs of the pool take turns: each is loaded once per step, answers its units, and makes room.
A unit is a batch of requests; its rows are committed when it ends, so a killed build loses the
batches in flight and pays for nothing twice. Requests are drawn by seeded hashes from documents and
tasks, so which LLM writes what for whom is the same on any cluster; only the words are the LLM's.

Classification is written in two calls by two LLMs: the tasks of one are sampled by another, which
is what llama-embed-nemotron-8b calls cross-model generation (arXiv 2511.07025, section 4.3).
"""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from datagen.schema import (
    PAIR,
    QUARANTINE,
    UserError,
    document_id,
    rejected_row,
)
from datagen.steps import Context, LedgerRow, Step, UnitResult
from datagen.store import Folder, read_table
from datagen.synthesize.engine import Engine, Request, Response
from datagen.synthesize.llm import LLM
from datagen.synthesize.parse import (
    label_in_text,
    labels_problem,
    parse,
    query_problem,
    string_schema,
    task_schema,
    text_problem,
)
from datagen.synthesize.prompts import load_prompt

UNIT_REQUESTS = 32
SHOWN_CHARACTERS = 500  # of a document, in the prompt
MINIMUM_DOCUMENT_CHARACTERS = 60
LANGUAGE_NAMES = {"eng": "English", "python": "English"}
RETRIEVAL = "Given a question, retrieve passages that answer the question."
CODE_RETRIEVAL = "Given a description, retrieve the code that does it."

KINDS = ("a question", "a request", "a few keywords", "a statement to check")
QUERY_WORDS = ("3 to 6 words", "6 to 10 words", "10 to 15 words")
TEXT_WORDS = ("5 to 10 words", "10 to 20 words", "20 to 30 words")
TOPICS = (
    "customer support messages", "movie reviews", "school homework questions", "weather reports",
    "recipes", "news headlines", "product reviews", "travel stories", "medical questions",
    "programming questions", "job advertisements", "messages between friends", "science articles",
    "complaints about public transport", "song lyrics", "legal letters", "pet care advice",
    "gardening tips", "museum visitor comments", "bank transfers", "sports commentary",
    "restaurant orders", "calls to a help line", "travel bookings",
)  # fmt: skip

TASK = pa.schema(
    [
        pa.field("task_id", pa.string(), nullable=False),
        pa.field("instruction", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("llm", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("sampling", pa.string(), nullable=False),
    ]
)


def write_tasks(*llms: LLM, cache: str, tasks_per_llm: int = 32, name: str = "write_tasks") -> Step:
    """First call of two-step classification: table `tasks`, and `rejected` with reasons."""
    _refuse_twins(llms)
    config = {
        "llms": [llm.config() for llm in llms],
        "tasks_per_llm": tasks_per_llm,
        "prompt": load_prompt("task").id,
    }
    return Step(
        name=name,
        version=1,
        config=config,
        inputs={},
        work=lambda context: _write_tasks(context, llms, cache),
        summary="let every LLM invent classification tasks",
    )


def synthesize(
    documents: Step,
    *,
    tasks: Step | None,
    llms: Sequence[LLM],
    cache: str,
    retrieval_per_llm: int = 160,
    classification_per_llm: int = 120,
    seed: int = 0,
    name: str = "synthesize",
) -> Step:
    """Table `pairs`: queries for public documents, and texts for tasks that other LLMs invented.

    Every row names its LLM, licence, prompt file, seed document and sampling. Rejected answers are
    kept in table `rejected` with the rule that they broke.
    """
    _refuse_twins(llms)
    config = {
        "llms": [llm.config() for llm in llms],
        "retrieval_per_llm": retrieval_per_llm,
        "classification_per_llm": classification_per_llm if tasks else 0,
        "seed": seed,
        "prompts": [load_prompt("doc2query").id, load_prompt("sample").id],
    }
    inputs = {"documents": documents} | ({"tasks": tasks} if tasks else {})
    return Step(
        name=name,
        version=1,
        config=config,
        inputs=inputs,
        work=lambda context: _synthesize(context, llms, cache),
        summary="let the LLMs write queries for documents and texts for each other's tasks",
    )


def _refuse_twins(llms: Sequence[LLM]) -> None:
    if not llms or len({llm.slug for llm in llms}) != len(llms):
        raise UserError(
            found="LLMs " + ", ".join(llm.name for llm in llms),
            expected="at least one LLM, each with its own name",
            do="name every LLM of the pool differently",
            exit_status=2,
        )


def _write_tasks(context: Context, llms: Sequence[LLM], cache: str) -> None:
    for number, llm in enumerate(llms):
        requests = [
            {
                "request": f"{llm.slug}/task/{i}",
                "topic": TOPICS[i % len(TOPICS)],
                "count": 2 + i % 4,
            }
            for i in range(context.config["tasks_per_llm"])
        ]
        schemas = {"tasks": TASK, "rejected": QUARANTINE}
        _turn(context, number, llm, cache, [("task", requests)], TaskWriter, schemas)
    context.facts["llms"] = _llm_table(context, llms)


def _synthesize(context: Context, llms: Sequence[LLM], cache: str) -> None:
    config = context.config
    documents = read_table(context.inputs["documents"], "documents")
    tasks = (
        read_table(context.inputs["tasks"], "tasks").to_pylist()
        if "tasks" in context.inputs
        else []
    )
    for number, llm in enumerate(llms):
        others = [task for task in tasks if task["llm"] != llm.name] if len(llms) > 1 else tasks
        if config["classification_per_llm"] and not others:
            raise UserError(
                found=f"no classification task for {llm.name} to write texts for",
                expected="at least one, invented by another LLM of the pool",
                do="raise tasks_per_llm, or read the table `rejected` of the tasks' step",
            )
        rows = seed_documents(documents, llm, seed=config["seed"])[number :: len(llms)]
        kinds = [
            ("retrieval", _retrieval_requests(llm, rows, config)),
            ("classification", _sample_requests(llm, others, config)),
        ]
        schemas = {"pairs": PAIR, "rejected": QUARANTINE}
        _turn(context, number, llm, cache, kinds, PairWriter, schemas)
    context.facts["llms"] = _llm_table(context, llms)


def _turn(
    context: Context,
    number: int,
    llm: LLM,
    cache: str,
    kinds: Sequence[tuple[str, list[dict[str, Any]]]],
    writer: type,
    schemas: Mapping[str, pa.Schema],
) -> None:
    """All requests of one LLM, in units; the model is loaded for this turn only."""
    source = context.inputs.get("documents")
    units = [
        {"kind": kind, "requests": requests[i : i + UNIT_REQUESTS], "folder": source and source.uri}
        for kind, requests in kinds
        for i in range(0, len(requests), UNIT_REQUESTS)
    ]
    context.map_units(
        units,
        writer,
        schemas=schemas,
        phase=llm.slug,
        first_index=number * 10_000,
        workers=llm.workers(),
        constructor={"llm": llm, "cache": cache},
    )


def seed_documents(documents: pa.Table, llm: LLM, *, seed: int) -> list[int]:
    """Rows of the public retrieval documents that an LLM may be given, in a seeded order."""
    columns = ("doc_id", "origin", "task", "language", "text")
    rows = zip(*(documents[name].to_pylist() for name in columns), strict=True)
    found = [
        (hashlib.blake2b(f"{seed}/{doc}".encode(), digest_size=8).hexdigest(), i)
        for i, (doc, origin, task, language, text) in enumerate(rows)
        if origin == "public"
        and task == "retrieval"
        and language in llm.languages
        and len(text) >= MINIMUM_DOCUMENT_CHARACTERS
    ]
    return [i for _, i in sorted(found)]


def _draw(key: str, choices: Sequence[Any]) -> Any:
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
    return choices[number % len(choices)]


def _retrieval_requests(
    llm: LLM, rows: Sequence[int], config: Mapping[str, Any]
) -> list[dict[str, Any]]:
    requests = []
    for i in range(min(config["retrieval_per_llm"], len(rows))):
        name = f"{llm.slug}/retrieval/{i}"
        key = f"{config['seed']}/{name}"
        requests.append(
            {
                "request": name,
                "row": rows[i],
                "kind": _draw(key + "/kind", KINDS),
                "words": _draw(key + "/words", QUERY_WORDS),
            }
        )
    return requests


def _sample_requests(
    llm: LLM, tasks: Sequence[Mapping[str, Any]], config: Mapping[str, Any]
) -> list[dict[str, Any]]:
    requests = []
    for i in range(config["classification_per_llm"]):
        name = f"{llm.slug}/classification/{i}"
        key = f"{config['seed']}/{name}"
        task = tasks[i % len(tasks)]
        requests.append(
            {
                "request": name,
                "task": task["instruction"],
                "labels": task["labels"],
                "label": _draw(key + "/label", task["labels"]),
                "words": _draw(key + "/words", TEXT_WORDS),
                "task_llm": task["llm"],
            }
        )
    return requests


@dataclass
class _Unit:
    """The rows of a unit as they come in."""

    rows: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    reasons: Counter


class _Writer:
    """Runs one LLM over units of requests."""

    def __init__(self, llm: LLM, cache: str):
        self.llm = llm
        self.engine = Engine(llm, cache=cache)

    def _answers(self, requests: Sequence[Request]) -> tuple[list[Response], dict[str, float]]:
        start = time.monotonic()
        responses = self.engine.generate(requests)
        sums = {
            "prompt_tokens": sum(r.prompt_tokens for r in responses),
            "output_tokens": sum(r.output_tokens for r in responses),
            "seconds": time.monotonic() - start,
        }
        return responses, sums

    def _result(
        self, kind: str, table: str, schema: pa.Schema, unit: _Unit, sums: Mapping[str, float]
    ) -> UnitResult:
        name = f"{self.llm.name}/{kind}"
        ledger = LedgerRow(
            source=name,
            unit="requests",
            rows_in=len(unit.rows) + len(unit.rejected),
            kept=len(unit.rows),
            dropped=dict(unit.reasons),
        )
        return UnitResult(
            tables={
                table: pa.Table.from_pylist(unit.rows, schema=schema),
                "rejected": pa.Table.from_pylist(unit.rejected, schema=QUARANTINE),
            },
            ledger=[ledger],
            stats={f"{name}|{key}": value for key, value in sums.items()},
        )

    def _reject(self, unit: _Unit, kind: str, request: str, reason: str, answer: Response) -> None:
        record = {"source": f"{self.llm.name}/{kind}", "provenance": {"row": request}}
        record["answer"] = answer.text
        unit.rejected.append(rejected_row(record, reason=reason))
        unit.reasons[reason] += 1


class TaskWriter(_Writer):
    """Invents classification tasks."""

    def __call__(self, unit: Mapping[str, Any]) -> UnitResult:
        prompt = load_prompt("task")
        requests = [
            Request(prompt=prompt, values=r, schema=task_schema(r["count"]))
            for r in unit["requests"]
        ]
        answers, sums = self._answers(requests)
        done = _Unit([], [], Counter())
        seen: set[str] = set()
        for request, answer in zip(unit["requests"], answers, strict=True):
            value, reason = parse(answer, "task")
            if value is not None:
                reason = text_problem(value["task"]) or labels_problem(value["labels"])
                if not reason and value["task"].casefold() in seen:
                    reason = "duplicate"
            if reason:
                self._reject(done, "task", request["request"], reason, answer)
                continue
            seen.add(value["task"].casefold())
            done.rows.append(
                {
                    "task_id": request["request"],
                    "instruction": " ".join(value["task"].split()),
                    "labels": [" ".join(label.split()) for label in value["labels"]],
                    "llm": self.llm.name,
                    "prompt": prompt.id,
                    "sampling": self.llm.sampling(),
                }
            )
        return self._result("task", "tasks", TASK, done, sums)


class PairWriter(_Writer):
    """Writes queries for documents, and texts for labels."""

    def __call__(self, unit: Mapping[str, Any]) -> UnitResult:
        return self._retrieval(unit) if unit["kind"] == "retrieval" else self._samples(unit)

    def _retrieval(self, unit: Mapping[str, Any]) -> UnitResult:
        prompt = load_prompt("doc2query")
        table = read_table(Folder(unit["folder"]), "documents")
        numbers = [r["row"] for r in unit["requests"]]
        documents = [table.slice(row, 1).to_pylist()[0] for row in numbers]
        requests = []
        for r, document in zip(unit["requests"], documents, strict=True):
            values = {
                "text": document["text"][:SHOWN_CHARACTERS],
                "kind": r["kind"],
                "words": r["words"],
                "language": LANGUAGE_NAMES.get(document["language"], document["language"]),
            }
            schema = string_schema("query", longest=120)
            requests.append(Request(prompt=prompt, values=values, schema=schema))
        answers, sums = self._answers(requests)
        done = _Unit([], [], Counter())
        seen: set[str] = set()
        for r, document, answer in zip(unit["requests"], documents, answers, strict=True):
            value, reason = parse(answer, "query")
            if value is not None:
                reason = query_problem(value["query"], document["text"])
                reason = reason or ("duplicate" if value["query"] in seen else None)
            if reason:
                self._reject(done, "retrieval", r["request"], reason, answer)
                continue
            seen.add(value["query"])
            done.rows.append(self._retrieval_pair(r, document, value["query"], prompt.id))
        return self._result("retrieval", "pairs", PAIR, done, sums)

    def _retrieval_pair(
        self, request: Mapping[str, Any], document: Mapping[str, Any], query: str, prompt: str
    ) -> dict[str, Any]:
        code = document["script"] == "Zyyy"
        seed = document_id(document["title"], document["text"])
        return {
            "source": "synthetic_retrieval",
            "task": "retrieval",
            "origin": "synthetic",
            "instruction": CODE_RETRIEVAL if code else RETRIEVAL,
            "query": " ".join(query.split()),
            "title": document["title"],
            "text": document["text"],
            "document_language": document["language"],
            "document_script": document["script"],
            "licence": self.llm.licence,
            "provenance": self._provenance(request["request"], prompt, seed),
        }

    def _samples(self, unit: Mapping[str, Any]) -> UnitResult:
        prompt = load_prompt("sample")
        requests = []
        for r in unit["requests"]:
            values = {**r, "labels": ", ".join(r["labels"]), "language": "English"}
            schema = string_schema("text", longest=240)
            requests.append(Request(prompt=prompt, values=values, schema=schema))
        answers, sums = self._answers(requests)
        done = _Unit([], [], Counter())
        seen: set[str] = set()
        for r, answer in zip(unit["requests"], answers, strict=True):
            value, reason = parse(answer, "text")
            if value is not None:
                text = value["text"]
                reason = text_problem(text) or ("duplicate" if text in seen else None)
                reason = reason or ("label_in_text" if label_in_text(r["label"], text) else None)
            if reason:
                self._reject(done, "classification", r["request"], reason, answer)
                continue
            seen.add(value["text"])
            done.rows.append(self._sample_pair(r, value["text"], prompt.id))
        return self._result("classification", "pairs", PAIR, done, sums)

    def _sample_pair(self, request: Mapping[str, Any], text: str, prompt: str) -> dict[str, Any]:
        others = [label for label in request["labels"] if label != request["label"]]
        return {
            "source": "synthetic_classification",
            "task": "classification",
            "origin": "synthetic",
            "instruction": request["task"],
            "query": " ".join(text.split()),
            "title": None,
            "text": request["label"],
            "negatives": [{"title": None, "text": label} for label in others],
            "document_language": "eng",
            "document_script": "Latn",
            "licence": self.llm.licence,
            "provenance": self._provenance(request["request"], prompt, None),
        }

    def _provenance(self, request: str, prompt: str, document: str | None) -> dict[str, Any]:
        return {
            "row": request,
            "llm": self.llm.name,
            "llm_licence": self.llm.licence,
            "prompt": prompt,
            "seed_document": document,
            "sampling": self.llm.sampling(),
            "seed": self.llm.seed,
        }


def _llm_table(context: Context, llms: Sequence[LLM]) -> list[dict[str, Any]]:
    """One record per LLM and kind of request, for people."""
    licences = {llm.name: llm.licence for llm in llms}
    found: dict[str, dict[str, Any]] = {}
    for row in context.ledger:
        llm, _, kind = row.source.rpartition("/")
        record = found.setdefault(row.source, _empty_record(llm, kind, licences[llm]))
        record["requests"] += row.rows_in
        record["valid"] += row.kept
        record["rejected"] = dict(
            sorted((Counter(record["rejected"]) + Counter(row.dropped)).items())
        )
    for name, record in found.items():
        for key in ("prompt_tokens", "output_tokens"):
            record[key] = int(context.stats[f"{name}|{key}"])
        seconds = float(context.stats[f"{name}|seconds"])
        record["seconds"] = round(seconds, 1)
        record["tokens_per_s"] = round(record["output_tokens"] / seconds) if seconds else 0
    return [found[name] for name in sorted(found)]


def _empty_record(llm: str, kind: str, licence: str) -> dict[str, Any]:
    return {"llm": llm, "kind": kind, "licence": licence, "requests": 0, "valid": 0, "rejected": {}}
