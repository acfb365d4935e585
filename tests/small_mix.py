"""A small mix made by the real steps from rows written here: what several test files look at."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from datagen.mix import Stage, write_mix
from datagen.schema import DOCUMENT, MINED, QUERY, document_id, query_id
from datagen.steps import Context, LedgerRow, Step, run_steps

STAGES = (
    Stage(name="pretrain", negatives=1, tasks=("retrieval",)),
    Stage(name="finetune", negatives=4),
)
LICENCES = {
    "trivia": "cc-by-sa-4.0",
    "catalogs": "bsd-3-clause",
    "similar": "mit",
    "topics": "apache-2.0",
    "python": "psf-2.0",
    "questions": "apache-2.0",
}
# source -> (task, origin, query language, document language)
SOURCES = {
    "trivia": ("retrieval", "public", ("eng", "Latn"), ("eng", "Latn")),
    "catalogs": ("bitext", "public", ("eng", "Latn"), ("arb", "Arab")),
    "similar": ("sts", "public", ("deu", "Latn"), ("deu", "Latn")),
    "topics": ("classification", "public", ("zho", "Hans"), ("zho", "Hans")),
    "python": ("retrieval", "public", ("eng", "Latn"), ("python", "Zyyy")),
    "questions": ("retrieval", "synthetic", ("eng", "Latn"), ("eng", "Latn")),
}
HOSTILE = {
    "query": "<script>alert('query')</script> \"quoted\" & ' "
    "\u202egnorw\u202c \x00\x07 javascript:alert(1)",
    "title": "</title><img src=x onerror=alert(1)>",
    "text": '<a href="javascript:alert(1)">click</a> {{ 7 * 7 }} \u05e9\u05dc\u05d5\u05dd '
    + "long " * 200,
    "source": "evil|source`<b>\n[x](javascript:alert(1))",
    "licence": "other: <i>none</i>",
}
LLM = {
    "llm": "tiny-llm",
    "llm_licence": "apache-2.0",
    "prompt": "question-1",
    "seed_document": None,
    "sampling": '{"temperature": 0.7}',
    "seed": 1,
}


FACTS = {
    "dedup": {
        "decontamination": {
            "tasks": ["faq-test", "news-test"],
            "matches": {"faq-test": {"trivia": 2, "similar": 1}},
        },
        "llms": [
            {
                "llm": "tiny-llm",
                "kind": "retrieval",
                "requested": 40,
                "valid": 33,
                "kept": 31,
                "reasons": {"invalid_json": 7, "near_duplicate": 2},
                "output_tokens": 412,
                "seconds": 2.5,
            }
        ],
        "llms_by_language": [
            {
                "llm": "tiny-llm",
                "kind": "retrieval",
                "language": "<img src=x onerror=alert(7)>\u202e",
                "requested": 40,
                "valid": 33,
                "kept": 31,
                "reasons": {"invalid_json": 7, "near_duplicate": 2},
                "prompt_tokens": 9000,
                "output_tokens": 412,
                "seconds": 2.5,
                "gpu_seconds": 0.0,
            }
        ],
    },
    "mine": {
        "mining": {
            "top": 24,
            "edges": [-1.0, 0.0, 1.0],
            "sources": {
                "trivia": {
                    "queries": 14,
                    "ceiling_share_of_top": 0.5,
                    "caught": {"near_duplicate": 3},
                    "positive_histogram": [0, 14],
                }
            },
        }
    },
}


def document(source: str, text: str, *, title: str | None = None) -> dict[str, Any]:
    """A row of DOCUMENT."""
    task, origin, _, (language, script) = SOURCES.get(source, SOURCES["trivia"])
    key = document_id(title, text)
    return {
        "doc_id": key, "source": source, "origin": origin, "task": task, "title": title,
        "text": text, "language": language, "script": script, "cluster": key,
    }  # fmt: skip


def query(source: str, text: str, positives: Sequence[str]) -> dict[str, Any]:
    """A row of QUERY."""
    task, origin, (language, script), _ = SOURCES.get(source, SOURCES["trivia"])
    key = query_id(task, text, source)
    provenance = {"row": "7", **(LLM if origin == "synthetic" else {})}
    return {
        "query_id": key, "source": source, "task": task, "origin": origin, "language": language,
        "script": script, "instruction": f"Instruction of {source}", "query": text,
        "positives": sorted(positives), "given_negatives": [], "cluster": key,
        "licence": LICENCES.get(source), "provenance": provenance,
    }  # fmt: skip


def mined(row: Mapping[str, Any], negatives: Sequence[str]) -> dict[str, Any]:
    """A row of MINED: positives score 0.9, negatives 0.7 and less."""
    return {
        "query_id": row["query_id"],
        "positives": row["positives"],
        "positive_scores": [0.9] * len(row["positives"]),
        "negatives": list(negatives),
        "negative_scores": [0.7 - 0.05 * i for i in range(len(negatives))],
        "given_negatives": 0,
    }


def rows_of(
    sources: Sequence[str] = tuple(SOURCES), *, per_source: int = 14, hostile: bool = False
) -> tuple[list[dict], list[dict], list[dict]]:
    """Queries, documents and mined rows; each query's negatives are other documents of its source.

    The first query of every source has 2 negatives: enough for pretrain, too few for finetune.
    """
    queries, documents, found = [], [], []
    for source in sources:
        own = [document(source, f"{source} document {i}") for i in range(per_source + 6)]
        documents += own
        for i in range(per_source):
            positives = [own[i]["doc_id"]] + ([own[i + 1]["doc_id"]] if i % 5 == 0 else [])
            row = query(source, f"{source} query {i}", positives)
            queries.append(row)
            count = 2 if i == 0 else 5
            found.append(mined(row, [d["doc_id"] for d in own[i + 2 :][:count]]))
    if hostile:
        documents.append(
            {
                **document("trivia", HOSTILE["text"], title=HOSTILE["title"]),
                "source": HOSTILE["source"],
            }
        )
        row = query("trivia", HOSTILE["query"], [documents[-1]["doc_id"]])
        row |= {"source": HOSTILE["source"], "licence": HOSTILE["licence"]}
        queries.append(row)
        found.append(mined(row, [d["doc_id"] for d in documents[:4]]))
    return queries, documents, found


def steps_of(queries: list[dict], documents: list[dict], found: list[dict]) -> tuple[Step, Step]:
    """The steps `dedup` and `mine` that write these rows."""
    order = sorted(range(len(queries)), key=lambda i: queries[i]["query_id"])
    queries, found = [queries[i] for i in order], [found[i] for i in order]

    def write_deduped(context: Context) -> None:
        _write(context, "queries", queries, QUERY)
        _write(context, "documents", sorted(documents, key=lambda d: d["doc_id"]), DOCUMENT)
        counts: dict[str, int] = {}
        for row in queries:
            counts[row["source"]] = counts.get(row["source"], 0) + 1
        context.ledger += [
            LedgerRow(
                source=s, rows_in=n + 3, kept=n, dropped={"exact": 2}, quarantined={"blank": 1}
            )
            for s, n in counts.items()
        ]
        context.facts.update(FACTS["dedup"])

    def write_mined(context: Context) -> None:
        _write(context, "mined", found, MINED)
        context.facts.update(FACTS["mine"])

    dedup = Step(name="dedup", version=1, config={}, inputs={}, work=write_deduped)
    mine = Step(name="mine", version=1, config={}, inputs={"deduped": dedup}, work=write_mined)
    return dedup, mine


def _write(context: Context, table: str, rows: list[dict], schema: pa.Schema) -> None:
    context.write(table, pa.Table.from_pylist(rows, schema=schema), schema, rows_per_shard=40)


def build(output: str, *rows: list[dict], **options: Any) -> tuple[Step, Step, Step]:
    """Run dedup, mine and mix under `output`; gives the three steps."""
    dedup, mine = steps_of(*rows)
    mix = write_mix(dedup, mine, **{"stages": STAGES, "rows_per_shard": 16, **options})
    run_steps([dedup, mine, mix], output, executor="local")
    return dedup, mine, mix
