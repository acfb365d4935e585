"""Near-duplicate removal, ours beside datatrove and datasketch on the same real texts.

    python benchmarks/dedup.py TABLE... [--texts 300000] [--peer-texts 20000] [--peer-python PYTHON]

Reads the text columns of Parquet tables, takes distinct rows of at least 40 characters in the order
of their hash, and times whole runs from Parquet to Parquet, each in a process of its own. datatrove
needs its own environment (`--peer-python`, with `datatrove[processing,io]`), runs its four
stages with its defaults on as many local tasks as there are cores, and is timed on `--peer-texts`
texts: its rate does not depend on their number. Recall and precision are against brute force over
the Jaccard of all pairs of a sample into which edited copies were put.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MINIMUM_CHARACTERS = 40
COLUMNS = ("text", "positive", "text_a", "text_b", "query")
SAMPLE, EDITED = 6000, 1500

DATATROVE = """
import sys
from datatrove.executor.local import LocalPipelineExecutor as Run
from datatrove.pipeline.dedup import minhash
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter
if __name__ == "__main__":
    given, out, tasks = sys.argv[1], sys.argv[2], int(sys.argv[3])
    config = minhash.MinhashConfig()
    read = lambda: ParquetReader(given, glob_pattern="*.parquet", doc_progress=False)
    at = lambda name: f"{out}/{name}"
    stages = [
        (tasks, [read(), minhash.MinhashDedupSignature(output_folder=at("sig"), config=config)]),
        (config.num_buckets, [minhash.MinhashDedupBuckets(
            input_folder=at("sig"), output_folder=at("buckets"), config=config)]),
        (1, [minhash.MinhashDedupCluster(
            input_folder=at("buckets"), output_folder=at("ids"), config=config)]),
        (tasks, [read(), minhash.MinhashDedupFilter(input_folder=at("ids")),
                 ParquetWriter(at("kept"))]),
    ]
    for number, (count, pipeline) in enumerate(stages):
        Run(pipeline=pipeline, tasks=count, workers=tasks,
            logging_dir=at(f"log{number}"), skip_completed=False).run()
"""

DATASKETCH = """
import sys
import pyarrow as pa, pyarrow.parquet as pq
from datasketch import MinHash, MinHashLSH
texts = pq.read_table(sys.argv[1])["text"].to_pylist()
index, kept = MinHashLSH(threshold=0.8, num_perm=128), []
for row, text in enumerate(texts):
    words = text.lower().split()
    sketch = MinHash(num_perm=128)
    sketch.update_batch([" ".join(words[i:i + 3]).encode() for i in range(max(1, len(words) - 2))])
    if not index.query(sketch):
        index.insert(row, sketch)
        kept.append(row)
pq.write_table(pa.table({"text": [texts[row] for row in kept]}), sys.argv[2])
"""


def real_texts(tables: Sequence[str], count: int) -> list[str]:
    """Distinct texts of the tables, in the order of their hash."""
    found: dict[bytes, str] = {}
    for table in tables:
        rows = pq.read_table(table)
        for name in COLUMNS:
            for text in rows[name].to_pylist() if name in rows.column_names else ():
                if text and len(text) >= MINIMUM_CHARACTERS:
                    found[hashlib.blake2b(text.encode(), digest_size=8).digest()] = text
    if len(found) < count:
        sys.exit(f"found: {len(found)} texts\nexpected: {count}\ndo: name more tables")
    return [found[key] for key in sorted(found)[:count]]


def edited(text: str, draw: random.Random) -> str:
    """The text with some of its words changed: one of thirty on average."""
    return " ".join(w[::-1] if draw.random() < 0.03 else w for w in text.split())


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Seconds and peak resident GiB of a command (of its first process)."""
    start = time.perf_counter()
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


def ours(given: Path, out: Path) -> list[str]:
    """The command a user would type."""
    return [sys.executable, "-m", "datagen.cli", "dedup", str(given), "--output", str(out)]


def accuracy(texts: Sequence[str], place: Path) -> dict[str, float]:
    """Recall and precision of what `datagen dedup` removes, against all pairs of a sample."""
    from datagen.fold import fold
    from datagen.minhash import shingles

    draw = random.Random(0)
    rows = list(texts[:SAMPLE])
    rows += [edited(text, draw) for text in rows[:EDITED]]
    given, out = place / "sample.parquet", place / "sample"
    pq.write_table(pa.table({"text": rows}), given)
    subprocess.run(ours(given, out), check=True, stdout=subprocess.DEVNULL)
    removed = set(pq.read_table(out / "removed.parquet")["row"].to_pylist())

    import polars as pl

    flat, offsets = shingles(fold(pl.Series("text", rows)))
    sets = [set(flat[a:b].tolist()) for a, b in zip(offsets, offsets[1:], strict=False)]
    homes: dict[int, list[int]] = {}
    alike = np.zeros(len(rows), dtype=bool)  # has an earlier text of Jaccard >= 0.8
    for row, mine in enumerate(sets):
        common: dict[int, int] = {}
        for value in mine:
            for other in homes.get(value, ()):
                common[other] = common.get(other, 0) + 1
            homes.setdefault(value, []).append(row)
        alike[row] = any(
            both >= 0.8 * (len(mine) + len(sets[other]) - both) for other, both in common.items()
        )
    true = set(np.flatnonzero(alike).tolist())
    return {
        "near_duplicates": len(true),
        "recall": round(len(true & removed) / len(true), 4),
        "precision": round(len(true & removed) / max(1, len(removed)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="+", metavar="TABLE")
    parser.add_argument("--texts", type=int, default=300_000)
    parser.add_argument("--peer-texts", type=int, default=20_000)
    parser.add_argument("--peer-python", help="python of an environment with datatrove")
    arguments = parser.parse_args()
    texts = real_texts(arguments.tables, arguments.texts)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "few").mkdir()
        everything, few = place / "all.parquet", place / "few"
        pq.write_table(pa.table({"text": texts}), everything)
        part = -(-arguments.peer_texts // cores)
        for i in range(cores):
            rows = texts[i * part : min((i + 1) * part, arguments.peer_texts)]
            ids = [str(i * part + k) for k in range(len(rows))]
            pq.write_table(pa.table({"id": ids, "text": rows}), few / f"{i}.parquet")
        pq.write_table(pa.table({"text": texts[: arguments.peer_texts]}), place / "one.parquet")
        runs = {
            "embedmix": (len(texts), ours(everything, place / "ours")),
            "datasketch": (
                arguments.peer_texts,
                [sys.executable, "-c", DATASKETCH, f"{place}/one.parquet", f"{place}/kept.parquet"],
            ),
        }
        if arguments.peer_python:
            (place / "peer.py").write_text(DATATROVE)
            command = [arguments.peer_python, f"{place}/peer.py", str(few), f"{place}/peer"]
            runs["datatrove"] = (arguments.peer_texts, [*command, str(cores)])
        rates: dict[str, float] = {}
        for name, (count, command) in runs.items():
            seconds, gib = timed(command)
            rates[name] = count / seconds
            figures = {
                "name": name,
                "texts": count,
                "seconds": round(seconds, 1),
                "texts_per_s": round(count / seconds),
                "peak_gib": round(gib, 2),
                "ours_is_times": round(rates["embedmix"] / rates[name], 1),
            }
            print(json.dumps(figures), flush=True)
        characters = sum(map(len, texts)) / len(texts)
        print(json.dumps({"mean_characters": round(characters), **accuracy(texts, place)}))


if __name__ == "__main__":
    main()
