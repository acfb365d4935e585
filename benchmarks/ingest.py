"""Ingest and clean on real pairs, from Parquet to committed shards: pairs per second.

    python benchmarks/ingest.py DATA [--copies 3] [--output benchmarks/results/ingest.md]

DATA has folders retrieval, code, bitext, classification and sts of Parquet files. Each is read
`--copies` times as sources of other names, so that the run is long enough to measure. The steps are
the real ones: Ray on two CPUs, then one process without Ray; Ray's own start is not counted. Beside
them Hugging Face `datasets` does the same normalisation, as Python functions in two processes.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from datagen.clean import clean
from datagen.clean_text import clean_text
from datagen.ingest import ingest
from datagen.sources.files import FilesSource
from datagen.steps import run_steps, start_ray

BOTH_SIDES = {"query": "query", "text": "positive", "title": "title", "licence": "licence"}
TASKS: dict[str, tuple[str, dict[str, str]]] = {
    "retrieval": ("retrieval", {**BOTH_SIDES, "language": "language"}),
    "code": ("retrieval", BOTH_SIDES),
    "bitext": (
        "bitext",
        {
            "query": "text_a",
            "text": "text_b",
            "query_language": "lang_a",
            "document_language": "lang_b",
            "licence": "licence",
        },
    ),
    "classification": (
        "classification",
        {"query": "text", "text": "label", "language": "language", "licence": "licence"},
    ),
    "sts": (
        "sts",
        {"query": "text_a", "text": "text_b", "score": "score", "language": "language"},
    ),
}


def sources(data: Path, copies: int) -> list[FilesSource]:
    """One source a file and copy."""
    files = [(kind, path) for kind in TASKS for path in sorted((data / kind).glob("*.parquet"))]
    return [
        FilesSource(
            name=f"{kind}-{path.stem}-{copy}",
            paths=(str(path),),
            task=TASKS[kind][0],
            columns=TASKS[kind][1],
            code=kind == "code",
        )
        for copy in range(copies)
        for kind, path in files
    ]


def run(data: Path, copies: int, *, executor: Any, output: str) -> dict[str, Any]:
    """Seconds and rows of both steps."""
    first = ingest(*sources(data, copies))
    start = time.perf_counter()
    manifests = run_steps([first, clean(first)], output, executor=executor)
    seconds = time.perf_counter() - start
    ledger = [row for manifest in manifests.values() for row in manifest.ledger]
    return {
        "pairs": sum(row["rows_in"] for row in manifests["ingest"].ledger),
        "kept": manifests["clean"].rows("pairs"),
        "seconds": seconds,
        "steps": [manifest.run["seconds"] for manifest in manifests.values()],
        "dropped": sum(sum(row["dropped"].values()) for row in ledger),
        "digest": manifests["clean"].digest,
    }


def peer(data: Path, output: str) -> dict[str, Any]:
    """The same texts normalised by `datasets.map` in two processes, and written."""
    import datasets

    datasets.disable_progress_bars()
    paths = [(kind, path) for kind in TASKS for path in sorted((data / kind).glob("*.parquet"))]
    start, pairs = time.perf_counter(), 0
    for kind, path in paths:
        sides = [TASKS[kind][1][name] for name in ("query", "text")]
        rows = datasets.Dataset.from_parquet(str(path), cache_dir=f"{output}/cache")
        cleaned = rows.map(_normalised, fn_kwargs={"sides": sides}, num_proc=2)
        cleaned.save_to_disk(f"{output}/{kind}-{path.stem}")
        pairs += len(cleaned)
    return {"pairs": pairs, "seconds": time.perf_counter() - start}


def _normalised(row: dict[str, Any], *, sides: list[str]) -> dict[str, str]:
    return {side: clean_text(row[side] or "") for side in sides}


def measured(function: Callable[..., dict[str, Any]], *arguments: Any, **options: Any) -> Any:
    """The figures of a run that writes into a folder of its own."""
    folder = tempfile.mkdtemp(prefix="ingest-")
    try:
        return function(*arguments, output=folder, **options)
    finally:
        shutil.rmtree(folder)


def line(name: str, found: dict[str, Any]) -> str:
    """One row of the table."""
    steps = [f"{found['pairs'] / s:,.0f}" for s in found.get("steps", ())] or ["", ""]
    rate = found["pairs"] / found["seconds"]
    cells = [name, f"{found['pairs']:,}", f"{found['seconds']:.1f}", *steps, f"{rate:,.0f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a folder of folders of Parquet files")
    parser.add_argument("--copies", type=int, default=3, help="times that each file is read (3)")
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    arguments = parser.parse_args()
    data, copies = arguments.data.resolve(), arguments.copies
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    start_ray()
    measured(run, data, 1, executor="ray")  # the workers' imports
    on_ray = measured(run, data, copies, executor="ray")
    alone = measured(run, data, copies, executor="local")
    beside = measured(peer, data)
    table = [
        f"# Ingest and clean, {date.today()}",
        "",
        f"`python benchmarks/ingest.py DATA --copies {copies}` on {os.cpu_count()} CPU cores: "
        f"{len(sources(data, 1))} Parquet files of real pairs, "
        f"{sum(p.stat().st_size for p in data.glob('*/*.parquet')) / 2**20:.0f} MiB, each read "
        f"{copies} times. From Parquet to committed shards, twice (once a step); "
        "`datasets` normalises the same texts with the same functions, drops nothing and writes "
        "once.",
        "",
        "| | pairs | seconds | ingest, pairs/s | clean, pairs/s | both, pairs/s |",
        "|---|---|---|---|---|---|",
        line("embedmix, Ray, 2 CPUs", on_ray),
        line("embedmix, one process", alone),
        line("datasets.map, 2 processes", beside),
        "",
        f"{on_ray['dropped']:,} pairs dropped by the rules; shards of both runs of embedmix are "
        + ("the same bytes." if on_ray["digest"] == alone["digest"] else "DIFFERENT."),
    ]
    text = "\n".join(table) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
