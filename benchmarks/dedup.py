"""Near-duplicate removal, ours beside datatrove and datasketch on the same real texts.

    python benchmarks/dedup.py TABLE... [--texts 300000] [--peer-texts 300000]
        [--peer-python PYTHON] [--grow 100000 300000 1000000 3000000] [--output FILE.md]

Reads the text columns of Parquet tables, takes distinct rows of at least 40 characters in the order
of their hash, and times whole runs from Parquet to Parquet, each in a process of its own: on the
texts as they are, and on passages of 1,000 characters that all are cut into. datatrove needs
its own environment (`--peer-python`, with `datatrove[processing,io]`), runs its four stages with
its defaults on as many local tasks as there are cores. Recall and precision are against brute
force over the Jaccard of all pairs of a sample into which edited copies were put.

`--grow` times ours on ever more texts, made by weaving two real ones into each and editing a
twentieth lightly, and draws time and memory beside the output.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

MINIMUM_CHARACTERS = 40
COLUMNS = ("text", "positive", "text_a", "text_b", "query")
SAMPLE, EDITED = 6000, 1500
PIECE = 12

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

# As its documentation shows it; and with what it takes to be as accurate as ours: more bands, and
# the Jaccard of what they propose.
DATASKETCH = """
import sys
import pyarrow as pa, pyarrow.parquet as pq
from datasketch import MinHash, MinHashLSH
texts = pq.read_table(sys.argv[1])["text"].to_pylist()
verify = len(sys.argv) > 3
weights = {"weights": (0.1, 0.9)} if verify else {}
index, kept, sets = MinHashLSH(threshold=0.8, num_perm=128, **weights), [], {}
for row, text in enumerate(texts):
    words = text.lower().split()
    shingles = [" ".join(words[i:i + 3]).encode() for i in range(max(1, len(words) - 2))]
    sketch = MinHash(num_perm=128)
    sketch.update_batch(shingles)
    found = index.query(sketch)
    if verify:
        mine = sets[row] = set(shingles)
        found = [k for k in found
                 if len(mine & sets[k]) >= 0.8 * (len(mine) + len(sets[k]) - len(mine & sets[k]))]
    if not found:
        index.insert(row, sketch)
        kept.append(row)
pq.write_table(pa.table({"row": kept, "text": [texts[row] for row in kept]}), sys.argv[2])
"""
VARIANTS: dict[str, list[str]] = {"datasketch": [], "datasketch, verified": ["verify"]}


def real_texts(tables: Sequence[str]) -> list[str]:
    """Distinct texts of the tables, in the order of their hash."""
    found: dict[bytes, str] = {}
    for table in tables:
        rows = pq.read_table(table)
        for name in COLUMNS:
            for text in rows[name].to_pylist() if name in rows.column_names else ():
                if text and len(text) >= MINIMUM_CHARACTERS:
                    found[hashlib.blake2b(text.encode(), digest_size=8).digest()] = text
    return [found[key] for key in sorted(found)]


def edited(text: str, draw: random.Random) -> str:
    """The text with some of its words changed: one of thirty on average."""
    return " ".join(w[::-1] if draw.random() < 0.03 else w for w in text.split())


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Seconds of a command, and the peak of the resident GiB of it and its children together."""
    start, peak = time.perf_counter(), 0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, _resident(process))
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(0.02)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - start, peak / 2**30


def _resident(process: psutil.Popen) -> int:
    size = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [process, *process.children(recursive=True)]:
            size += one.memory_info().rss
    return size


def ours(given: Path, out: Path) -> list[str]:
    """The command a user would type."""
    return [sys.executable, "-m", "datagen.cli", "dedup", str(given), "--output", str(out)]


def accuracy(texts: Sequence[str], place: Path) -> list[dict[str, Any]]:
    """Recall and precision of what is removed, against all pairs of a sample: `datagen dedup`'s,
    and that of datasketch's index, which verifies nothing."""
    from datagen.fold import fold
    from datagen.shingles import shingles

    draw = random.Random(0)
    rows = list(texts[:SAMPLE])
    rows += [edited(text, draw) for text in rows[:EDITED]]
    given, out = place / "sample.parquet", place / "sample"
    pq.write_table(pa.table({"text": rows}), given)
    subprocess.run(ours(given, out), check=True, stdout=subprocess.DEVNULL)
    removed = {"embedmix": set(pq.read_table(out / "removed.parquet")["row"].to_pylist())}
    kept = place / "sample_kept.parquet"
    for name, verify in VARIANTS.items():
        command = [sys.executable, "-c", DATASKETCH, str(given), str(kept), *verify]
        subprocess.run(command, check=True)
        removed[name] = set(range(len(rows))) - set(pq.read_table(kept)["row"].to_pylist())

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
    return [
        {
            "name": name,
            "near_duplicates": len(true),
            "recall": round(len(true & gone) / len(true), 4),
            "precision": round(len(true & gone) / max(1, len(gone)), 4),
        }
        for name, gone in removed.items()
    ]


def passages(texts: Sequence[str], length: int) -> list[str]:
    """All texts, one after the other, cut into passages of `length` characters."""
    stream = " ".join(texts)
    return [stream[i : i + length] for i in range(0, len(stream) - length, length)]


def crossed(texts: Sequence[str], count: int) -> Iterator[str]:
    """`count` texts, each two real ones in turn, PIECE characters at a time: no two are alike, but
    every twentieth is its predecessor with a word changed."""
    draw, before = random.Random(0), ""
    for i in range(count):
        if i % 20 == 19:
            words = before.split(" ")
            words[draw.randrange(len(words))] = "changed"
            yield " ".join(words)
            continue
        one = texts[i % len(texts)]
        other = texts[(i + 7919 * (1 + i // len(texts))) % len(texts)]
        pieces = zip_longest(_pieces(one, 0), _pieces(other, PIECE // 2), fillvalue="")
        before = "".join(chain.from_iterable(pieces))[: (len(one) + len(other)) // 2]
        yield before


def _pieces(text: str, first: int) -> list[str]:
    return [text[i : i + PIECE] for i in range(first, len(text), 2 * PIECE)]


def grow(texts: Sequence[str], counts: Sequence[int], place: Path) -> list[dict[str, Any]]:
    """Seconds and memory of ours on ever more texts."""
    rows = []
    few, out = place / "few.parquet", place / "grown"
    pq.write_table(pa.table({"text": texts[:1000]}), few)
    timed(ours(few, out))  # compiles, where nothing is compiled yet
    _, base = timed(ours(few, out))
    for count in counts:
        given = place / f"{count}.parquet"
        table = pa.table({"text": pa.array(crossed(texts, count), pa.large_string())})
        pq.write_table(table, given, row_group_size=65_536)
        size = table["text"].nbytes / 2**30
        seconds, peak = timed(ours(given, out))
        beyond = (peak - base - size) * 2**30 / count
        given.unlink()
        row = {
            "texts": count,
            "seconds": round(seconds, 1),
            "texts_per_s": round(count / seconds),
            "text_gib": round(size, 2),
            "peak_gib": round(peak, 2),
            "bytes_a_text_beyond": round(beyond),
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def draw_growth(rows: Sequence[Mapping[str, Any]], name: Path) -> None:
    """Time and memory over the number of texts, as one PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    counts = [row["texts"] / 1e6 for row in rows]
    axes[0].plot(counts, [row["seconds"] for row in rows], "o-")
    axes[0].set(xlabel="texts (millions)", ylabel="seconds, whole process", xlim=0, ylim=0)
    axes[1].plot(counts, [row["peak_gib"] for row in rows], "o-", label="peak")
    axes[1].plot(counts, [row["text_gib"] for row in rows], "o--", label="the text itself")
    axes[1].set(xlabel="texts (millions)", ylabel="GiB", xlim=0, ylim=0)
    axes[1].legend()
    figure.savefig(name, dpi=120)


def compared(
    texts: Sequence[str], place: Path, *, few: int, peer_python: str | None
) -> list[dict[str, Any]]:
    """Rates of ours on all texts and of the peers on `few` of them."""
    place.mkdir()
    few = min(few, len(texts))
    cores = len(os.sched_getaffinity(0))
    everything, parts, one = place / "all.parquet", place / "few", place / "one.parquet"
    parts.mkdir()
    pq.write_table(pa.table({"text": texts}), everything)
    pq.write_table(pa.table({"text": texts[:few]}), one)
    size = -(-few // cores)
    for i in range(cores):
        rows = texts[i * size : min((i + 1) * size, few)]
        ids = [str(i * size + k) for k in range(len(rows))]
        pq.write_table(pa.table({"id": ids, "text": rows}), parts / f"{i}.parquet")
    timed(ours(one, place / "ours"))  # compiles, where nothing is compiled yet
    runs: dict[str, tuple[int, Sequence[str]]] = {
        "embedmix": (len(texts), ours(everything, place / "ours")),
    }
    for name, verify in VARIANTS.items():
        kept = str(place / "kept.parquet")
        runs[name] = (few, [sys.executable, "-c", DATASKETCH, str(one), kept, *verify])
    if peer_python:
        (place / "peer.py").write_text(DATATROVE)
        command = [peer_python, f"{place}/peer.py", str(parts), f"{place}/peer", str(cores)]
        runs["datatrove"] = (few, command)
    rows: list[dict[str, Any]] = []
    characters = sum(map(len, texts)) / len(texts)
    runs_of = dict.fromkeys(runs, 1) | {"embedmix": 5}
    for name, (count, command) in runs.items():
        seconds, gib = sorted(timed(command) for _ in range(runs_of[name]))[runs_of[name] // 2]
        rows.append(
            {
                "name": name,
                "characters": round(characters),
                "texts": count,
                "seconds": round(seconds, 1),
                "texts_per_s": round(count / seconds),
                "peak_gib": round(gib, 2),
                "ours_is_times": round(rows[0]["texts_per_s"] / (count / seconds), 1)
                if rows
                else 1.0,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[n]) for n in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="+", metavar="TABLE")
    parser.add_argument("--texts", type=int, default=300_000)
    parser.add_argument("--peer-texts", type=int, help="fewer, where time is short")
    parser.add_argument("--peer-python", help="python of an environment with datatrove")
    parser.add_argument("--grow", type=int, nargs="*", default=(), metavar="N")
    parser.add_argument("--output", type=Path, help="a Markdown file; the plot goes beside it")
    arguments = parser.parse_args()
    everything = real_texts(arguments.tables)
    texts = everything[: arguments.texts]
    if len(texts) < arguments.texts:
        sys.exit(f"found: {len(texts)} texts\nexpected: {arguments.texts}\ndo: name more tables")
    peers = {"few": arguments.peer_texts or len(texts), "peer_python": arguments.peer_python}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        found = accuracy(texts, place)
        print(json.dumps(found), flush=True)
        tables = [compared(texts, place / "short", **peers)]
        tables.append(compared(passages(everything, 1000), place / "long", **peers))
        grown = grow(texts, arguments.grow, place) if arguments.grow else []
    if not arguments.output:
        return
    # Paths are of this machine: the command is written with names instead.
    command = "python benchmarks/dedup.py TABLE... --peer-python PYTHON"
    if grown:
        command += " --grow " + " ".join(map(str, arguments.grow))
        draw_growth(grown, arguments.output.with_suffix(".png"))
    parts = [
        f"# Near-duplicate removal, {datetime.date.today()}",
        f"`{command}` on {machine()}. Whole processes, from Parquet to Parquet; ours: median of "
        f"five. {len(texts):,} distinct real texts as they are, then all there are as passages of "
        "1,000 characters. datatrove: four stages, its defaults, as many local tasks as cores; "
        "datasketch: MinHashLSH, 128 permutations, one process, three words a shingle; verified: "
        "with more bands and the Jaccard of what they propose. Memory: all processes together.",
        *map(markdown, tables),
        f"Against brute force over all pairs of {SAMPLE:,} texts and {EDITED:,} edited copies "
        "(near-duplicates: Jaccard 0.8 or more), what is removed:",
        markdown(found),
    ]
    if grown:
        parts += [
            "Growth, on texts woven from real ones. Memory beyond the text is the peak less the "
            "text and less the peak with 1,000 texts (the libraries), a text.",
            markdown(grown),
            f"![time and memory]({arguments.output.with_suffix('.png').name})",
        ]
    arguments.output.write_text("\n\n".join(part.strip() for part in parts) + "\n")


def machine() -> str:
    """What the figures were measured on."""
    cores, memory = (
        len(os.sched_getaffinity(0)),
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    )
    versions = f"Python {platform.python_version()}, polars {version('polars')}"
    return f"{cores} cores of {platform.machine()}, {memory / 2**30:.0f} GiB, {versions}"


if __name__ == "__main__":
    main()
