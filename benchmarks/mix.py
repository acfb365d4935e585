"""Mix assembly and the trainer's reader at size: seconds, rows per second, resident memory.

    python benchmarks/mix.py [--rows 1000000] [--folder DIR] [--output benchmarks/results/mix.md]

Writes synthetic steps first (queries, documents, mined negatives; ids and texts of real length, 40
sources, three quarters of the rows retrieval with one negative, the rest of all tasks with four, as
in the 16.1M rows of llama-embed-nemotron-8b), then runs the real step over them in a process of its
own, and reads random rows of the result in another. About 1.4 KB of disk a row, deleted at the end.
`--parts` runs only some of: make, assemble, read.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from datagen.mix import write_mix
from datagen.schema import DOCUMENT, MINED, QUERY, TASKS
from datagen.stages import Stage
from datagen.steps import Context, Step, run_steps

SHARD_ROWS = 65_536
SOURCES = 40
STAGES = (
    Stage(name="pretrain", negatives=1, tasks=("retrieval",), sources=("source-00", "source-01")),
    Stage(name="finetune", negatives=4),
)
TEXT = (
    "the of river a model in question answer city which to history and data name is was year "
    "Straße 東京 código library function returns how many first team music health"
)
WORDS = pa.array(TEXT.split())
HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


def ids(count: int, generator: np.random.Generator) -> np.ndarray:
    """Sorted random ids as bytes [count, 16]."""
    numbers = np.sort(generator.integers(0, 2**64, count, dtype=np.uint64))
    rest = generator.integers(0, 256, (count, 8), dtype=np.uint8)
    return np.hstack([numbers.astype(">u8").view(np.uint8).reshape(-1, 8), rest])


def digits(numbers: np.ndarray) -> pa.Array:
    """Ids as strings of 32 hexadecimal digits."""
    text = np.empty((len(numbers), 32), dtype=np.uint8)
    text[:, 0::2], text[:, 1::2] = HEX[numbers >> 4], HEX[numbers & 15]
    offsets = np.arange(0, 32 * (len(numbers) + 1), 32, dtype=np.int32)
    return pa.StringArray.from_buffers(
        len(numbers), pa.py_buffer(offsets), pa.py_buffer(text.ravel())
    )


def texts(count: int, mean: int, generator: np.random.Generator) -> pa.Array:
    """Texts of about `mean` characters, lengths log-normal."""
    lengths = np.maximum(generator.lognormal(np.log(mean) - 0.18, 0.6, count).astype(int) // 6, 2)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    words = WORDS.take(pa.array(generator.integers(0, len(WORDS), int(lengths.sum()))))
    return pa.compute.binary_join(pa.ListArray.from_arrays(offsets, words), " ")


def lists(values: pa.Array, lengths: np.ndarray) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def table(schema: pa.Schema, rows: int, **columns: pa.Array) -> pa.Table:
    arrays = [columns.get(f.name, pa.nulls(rows, f.type)) for f in schema]
    return pa.Table.from_arrays(
        [a.cast(f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema
    )


def constant(value: str, rows: int) -> pa.Array:
    return pa.array([value]).take(pa.array(np.zeros(rows, np.int32)))


def write_deduped(context: Context) -> None:
    """Queries and documents, sorted by id as dedup leaves them."""
    config = context.config
    generator = np.random.default_rng(0)
    document_ids = ids(config["documents"], generator)
    np.save(f"{config['scratch']}/documents.npy", document_ids)
    for start in range(0, len(document_ids), SHARD_ROWS):
        part = document_ids[start : start + SHARD_ROWS]
        rows, own = len(part), digits(part)
        public = pa.array(part[:, 15] % 2 == 0)
        rows_of = table(
            DOCUMENT,
            rows,
            doc_id=own,
            cluster=own,
            source=source_names(part),
            origin=pa.compute.if_else(public, "public", "synthetic"),
            task=constant("retrieval", rows),
            text=texts(rows, 420, generator),
            language=constant("eng", rows),
            script=constant("Latn", rows),
        )
        context.write("documents", rows_of, DOCUMENT, rows_per_shard=SHARD_ROWS)
    query_ids = ids(config["rows"], generator)
    np.save(f"{config['scratch']}/queries.npy", query_ids)
    for start in range(0, len(query_ids), SHARD_ROWS):
        part = query_ids[start : start + SHARD_ROWS]
        rows, own = len(part), digits(part)
        source = source_numbers(part)
        task = np.where(source < 30, 0, source % len(TASKS)).astype(np.int32)
        positives = document_ids[generator.integers(0, len(document_ids), rows)]
        row_numbers = pa.array(np.arange(start, start + rows)).cast(pa.string())
        rows_of = table(
            QUERY,
            rows,
            query_id=own,
            cluster=own,
            source=source_names(part),
            task=pa.array(TASKS).take(pa.array(task)),
            origin=pa.compute.if_else(pa.array(source % 2 == 0), "public", "synthetic"),
            language=constant("eng", rows),
            script=constant("Latn", rows),
            instruction=constant("Given a question, retrieve passages that answer it.", rows),
            query=texts(rows, 60, generator),
            positives=lists(digits(positives), np.ones(rows, int)),
            given_negatives=lists(pa.array([], pa.string()), np.zeros(rows, int)),
            licence=constant("cc-by-4.0", rows),
            provenance=pa.StructArray.from_arrays(
                [
                    row_numbers,
                    *(pa.nulls(rows, f.type) for f in list(QUERY.field("provenance").type)[1:]),
                ],
                fields=list(QUERY.field("provenance").type),
            ),
        )
        np.save(f"{config['scratch']}/positives-{start // SHARD_ROWS:05d}.npy", positives)
        context.write("queries", rows_of, QUERY, rows_per_shard=SHARD_ROWS)


def write_mined(context: Context) -> None:
    """One negative for the two large sources, four for the others."""
    config = context.config
    generator = np.random.default_rng(1)
    document_ids = np.load(f"{config['scratch']}/documents.npy", mmap_mode="r")
    query_ids = np.load(f"{config['scratch']}/queries.npy", mmap_mode="r")
    for start in range(0, len(query_ids), SHARD_ROWS):
        part = query_ids[start : start + SHARD_ROWS]
        rows = len(part)
        count = np.where(source_numbers(part) < 2, 1, 4)
        named = np.sort(generator.integers(0, len(document_ids), int(count.sum())))
        negatives = document_ids[generator.permutation(named)]
        positives = np.load(f"{config['scratch']}/positives-{start // SHARD_ROWS:05d}.npy")
        scores = pa.array(generator.random(int(count.sum())), pa.float32())
        rows_of = table(
            MINED,
            rows,
            query_id=digits(part),
            positives=lists(digits(positives), np.ones(rows, int)),
            positive_scores=lists(pa.array(np.ones(rows), pa.float32()), np.ones(rows, int)),
            negatives=lists(digits(negatives), count),
            negative_scores=lists(scores, count),
            given_negatives=pa.array(np.zeros(rows), pa.int32()),
        )
        context.write("mined", rows_of, MINED, rows_per_shard=SHARD_ROWS)


def source_numbers(part: np.ndarray) -> np.ndarray:
    """Source of each id: three quarters in the first two, as in pretraining."""
    draw = part[:, 14].astype(int)
    return np.where(draw < 96, 0, np.where(draw < 192, 1, draw % (SOURCES - 2) + 2))


def source_names(part: np.ndarray) -> pa.Array:
    names = pa.array([f"source-{i:02d}" for i in range(SOURCES)])
    return names.take(pa.array(source_numbers(part)))


def steps(rows: int, scratch: str) -> list[Step]:
    config = {"rows": rows, "documents": rows * 6 // 10, "scratch": scratch}
    dedup = Step(name="dedup", version=1, config=config, inputs={}, work=write_deduped)
    mine = Step(name="mine", version=1, config=config, inputs={"dedup": dedup}, work=write_mined)
    return [dedup, mine, write_mix(dedup, mine, stages=STAGES, seed=0)]


def make(rows: int, folder: str) -> dict[str, Any]:
    run_steps(steps(rows, folder)[:2], folder, executor="local")
    return {}


def assemble(rows: int, folder: str) -> dict[str, Any]:
    manifest = run_steps(steps(rows, folder), folder, executor="local")["mix"]
    written = sum(shard.bytes for shard in manifest.shards)
    return {
        "rows": manifest.rows("pretrain") + manifest.rows("finetune"),
        "documents": manifest.rows("documents"),
        "seconds": manifest.run["seconds"],
        "gib": written / 2**30,
    }


def read(rows: int, folder: str) -> dict[str, Any]:
    from trainer.data import StageData

    found: dict[str, Any] = {}
    for stage, negatives, batch_size in (("pretrain", 1, 2048), ("finetune", 4, 128)):
        start = time.perf_counter()
        data = StageData(f"{folder}/mix", stage, negatives=negatives)
        opened = time.perf_counter() - start
        start = time.perf_counter()
        plan = data.plan(seed=0, epoch=0, batch_size=batch_size)
        planned = time.perf_counter() - start
        taken, memory, cold, busy = 0, [], 0.0, 0.0
        for half in range(2):
            start, used, taken = time.perf_counter(), time.process_time(), 0
            for batch in plan[half * len(plan) // 2 :]:
                taken += len(data.examples(batch, seed=0, epoch=0))
                if taken >= 400_000:
                    break
            rate = taken / (time.perf_counter() - start)
            cold = cold or rate
            busy = taken / (time.process_time() - used)
            memory.append(anonymous_mib())
        found[stage] = {
            "rows": len(data.rows), "open": opened, "plan": planned,
            "cold": cold, "warm": rate, "busy": busy,
            "anonymous": memory, "resident": resident_mib(),
        }  # fmt: skip
        del data, plan
    return found


def anonymous_mib() -> float:
    return _status("RssAnon")


def resident_mib() -> float:
    return _status("VmRSS")


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


def alone(part: Any, rows: int, folder: str) -> dict[str, Any]:
    """Run a part in a process of its own; its figures and its peak of resident memory."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measured, (part, rows, folder))


def _measured(part: Any, rows: int, folder: str) -> dict[str, Any]:
    found = part(rows, folder)
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


PARTS = {"make": make, "assemble": assemble, "read": read}


def report(rows: int, found: dict[str, Any]) -> str:
    lines = [
        f"# Mix assembly and reading, {date.today()}",
        "",
        f"`python benchmarks/mix.py --rows {rows}` on {os.cpu_count()} CPU cores; synthetic ids "
        "and texts of real length (documents 420 characters, queries 60).",
        "",
    ]
    if "assemble" in found:
        a = found["assemble"]
        lines += [
            "| rows | documents | GiB written | seconds | rows/s | peak resident, MiB |",
            "|---|---|---|---|---|---|",
            f"| {a['rows']:,} | {a['documents']:,} | {a['gib']:.1f} | {a['seconds']:.1f} "
            f"| {a['rows'] / a['seconds']:,.0f} | {a['peak']:,.0f} |",
            "",
        ]
    if "read" in found:
        lines += [
            "| stage | rows | open, s | plan, s | random rows/s, first pass | then "
            "| rows per CPU second | MiB of its own, then | resident with mapped files, MiB |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for stage, r in found["read"].items():
            if stage != "peak":
                lines.append(
                    f"| {stage} | {r['rows']:,} | {r['open']:.2f} | {r['plan']:.2f} | "
                    f"{r['cold']:,.0f} | {r['warm']:,.0f} | {r['busy']:,.0f} | "
                    f"{r['anonymous'][0]:,.0f}, {r['anonymous'][1]:,.0f} | {r['resident']:,.0f} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", help="where to write and leave the data (a temporary folder)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, help="a Markdown file for the tables")
    arguments = parser.parse_args()
    folder = arguments.folder or tempfile.mkdtemp(prefix="mix-")
    try:
        os.makedirs(folder, exist_ok=True)
        found = {name: alone(PARTS[name], arguments.rows, folder) for name in arguments.parts}
    finally:
        if not arguments.folder:
            shutil.rmtree(folder)
    print(json.dumps(found, indent=1))
    text = report(arguments.rows, found)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
