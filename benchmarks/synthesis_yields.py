"""What share of its answers a packaged LLM keeps, by kind, and which rules take the others.

    python benchmarks/synthesis_yields.py --output out/yields --requests 32

Documents are the paragraphs of this repository's pages; every kind is asked the same number of
requests of, drawn with the seed of a build. Writes `yields.md` and prints it.
"""

import argparse
from collections import Counter
from pathlib import Path

import pyarrow as pa

from datagen.packaged import default_cache
from datagen.schema import DOCUMENT, document_id
from datagen.steps import Context, LedgerRow, Step, run_steps
from datagen.store import Folder, read_table
from datagen.synthesize import Knobs, synthesize, write_tasks
from datagen.synthesize.llm import from_model
from datagen.synthesize.step import plan_of

KINDS = ("retrieval", "scratch", "classification", "clustering", "sts", "code")
TASKS = ("classification", "clustering", "scratch/short_long", "scratch/long_short")
PAGES = Path(__file__).resolve().parents[1] / "docs"


def paragraphs() -> pa.Table:
    """The pages' paragraphs of running text, as documents."""
    texts = [part for page in sorted(PAGES.glob("*.md")) for part in page.read_text().split("\n\n")]
    keys = {
        document_id(None, text): text
        for text in texts
        if 120 < len(text) < 700 and "|" not in text and "```" not in text
    }
    same = {"source": "pages", "origin": "public", "task": "retrieval", "title": None}
    same |= {"language": "eng", "script": "Latn"}
    rows = [{"doc_id": key, "cluster": key, "text": keys[key], **same} for key in sorted(keys)]
    return pa.Table.from_pylist(rows, schema=DOCUMENT)


def documents() -> Step:
    def work(context: Context) -> None:
        rows = paragraphs()
        context.write("documents", rows, DOCUMENT, rows_per_shard=10_000)
        count = rows.num_rows
        context.ledger.append(LedgerRow(source="pages", rows_in=count, kept=count))

    return Step(name="documents", version=1, config={}, inputs={}, work=work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--calls", type=int, default=1)
    given = parser.parse_args()
    llm, cache, pages = from_model(given.model), default_cache(), documents()
    knobs = Knobs(calls=given.calls, task_kinds=TASKS, long_words=(50, 100))
    tasks = write_tasks(llm, cache=cache, lists_per_llm=24, knobs=knobs)
    rows = {kind: given.requests for kind in given.kinds}
    whole = synthesize(pages, tasks=tasks, llms=[llm], cache=cache, rows=rows, knobs=knobs)
    sample = plan_of(whole, sample=given.requests)
    run_steps([pages, tasks, sample], given.output, executor="local")
    asked = read_table(Folder(f"{given.output}/steps/{sample.name}"), "asked").to_pylist()
    lines = [f"| kind, by {llm.name} | requests | kept | rules |", "|---|---|---|---|"]
    for kind in given.kinds:
        reasons = Counter(row["reason"] for row in asked if row["kind"] == kind)
        kept = reasons.pop(None, 0)
        broken = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        lines.append(f"| {kind} | {kept + reasons.total()} | {kept} | {broken} |")
    table = "\n".join(lines) + "\n"
    Path(given.output, "yields.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
