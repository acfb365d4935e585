"""Hard-negative mining, ours beside sentence-transformers on the same real texts; search and cache.

    python benchmarks/mining.py TABLE... [--small] [--encoder NAME] [--output FILE.md]

Reads query and document columns of Parquet tables. Each of the two miners runs in a process of its
own from Parquet to Parquet, encoding included, with the same model and rule (margin 0.95, top 10).
Negatives are compared where the rules coincide: without near-duplicate clusters, which only ours
knows, for queries that the peer's window of 110 ranks serves. The search alone is measured beside
torch's matrix product on the same threads, in float32 and in bfloat16, and its memory on vectors on
disk.
"""

import argparse
import datetime
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from datagen.schema import DOCUMENT, QUERY, document_id
from datagen.steps import Context, Step, run_steps
from datagen.store import Folder, read_manifest, read_table, write_shard
from datagen.threads import side_by_side
from datagen.topk import top_k
from datagen.vectors import Embeddings, embedding_schema, embedding_table

NEGATIVES, TIE = 10, 2e-6
BEGINNING = 100  # characters of a text
RANGE = 10_000  # documents that a worker searches

PEER = """
import sys, json, time
import pyarrow.parquet as pq
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives
model, queries, documents, output, negatives = sys.argv[1:]
q, d = pq.read_table(queries), pq.read_table(documents)
texts = dict(zip(d["doc_id"].to_pylist(), d["text"].to_pylist()))
pairs = Dataset.from_dict({
    "query": q["query"].to_pylist(),
    "positive": [texts[row[0]] for row in q["positives"].to_pylist()]})
found = mine_hard_negatives(pairs, SentenceTransformer(model, device="cpu"),
    corpus=list(texts.values()), relative_margin=0.05, num_negatives=int(negatives),
    output_format="n-tuple", output_scores=False, batch_size=32, verbose=False)
found.to_parquet(output)
"""

OURS = """
import sys
from datagen.mine_files import mine_files
model, queries, documents, output, negatives, dtype, cache, margin = sys.argv[1:]
mine_files(queries, documents, output, encoder=model, negatives=int(negatives), dtype=dtype,
    cache=cache, margin=float(margin))
"""

CLUSTER = """
import os, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(num_cpus=2)
os.environ["RAY_ADDRESS"] = cluster.address
here, model, queries, documents, cache, output = sys.argv[1:]
sys.path.insert(0, here)
import pyarrow.parquet as pq
import ray
from datagen.steps import run_steps
from mining import RANGE, mining_steps
more = {"documents_per_unit": RANGE, "actors": 3, "threads": 1, "name": "mine", "cache": cache}
steps = mining_steps(model, pq.read_table(queries), pq.read_table(documents), **more)
run_steps(steps, output, executor="ray")
assert len([node for node in ray.nodes() if node["Alive"]]) == 3
ray.shutdown()
cluster.shutdown()
"""

SEARCH = """
import sys, json, time
import numpy as np
from datagen.store import Folder
from datagen.threads import side_by_side
from datagen.topk import top_k
from datagen.vectors import Embeddings
folder, queries = sys.argv[1:]
vectors = Embeddings(Folder(folder), sorted(Folder(folder).names()))
asked = vectors[: int(queries)]
with side_by_side(2) as run:
    start = time.perf_counter()
    top_k(asked, vectors, k=24, run=run)
print(json.dumps(time.perf_counter() - start))
"""


def real_rows(tables: Sequence[str], queries: int, documents: int) -> tuple[pa.Table, pa.Table]:
    """Queries and documents, each text once; the first ones in the order of their hash."""
    parts = []
    for table in tables:
        rows = pl.read_parquet(table)
        if {"query", "positive"} <= set(rows.columns):
            parts.append(rows.select("query", text="positive"))
    pairs = pl.concat(parts).drop_nulls().unique("query", keep="first", maintain_order=True)
    names = [document_id(None, text) for text in pairs["text"]]
    pairs = pairs.with_columns(doc_id=pl.Series(names)).filter(
        pl.col("query").str.strip_chars() != ""
    )
    docs = pairs.unique("doc_id", keep="first", maintain_order=True).sort("doc_id")
    docs = docs.select("doc_id", "text").head(documents)
    asked = pairs.join(docs.select("doc_id"), on="doc_id", maintain_order="left")
    asked = asked.sort(pl.col("query").hash(1)).head(queries)
    asked = asked.with_row_index("query_id").select(
        pl.col("query_id").cast(pl.String), "query", positives=pl.concat_list("doc_id")
    )
    return asked.to_arrow(), docs.to_arrow()


def timed(command: Sequence[str]) -> tuple[float, float, str]:
    """Seconds of a command, its peak of resident GiB, and what it printed."""
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as printed:
        process = psutil.Popen(command, stdout=printed, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            try:
                peak = max(peak, process.memory_info().rss)
                process.wait(0.02)
            except (psutil.TimeoutExpired, psutil.NoSuchProcess):
                continue
        printed.seek(0)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return time.perf_counter() - start, peak / 2**30, printed.read()


def _write(context: Context, *, queries: pa.Table, documents: pa.Table) -> None:
    """The tables as steps know them, every text a cluster of its own."""
    docs = pl.DataFrame(pl.from_arrow(documents)).with_columns(cluster=pl.col("doc_id"))
    asked = pl.DataFrame(pl.from_arrow(queries)).with_columns(
        cluster=pl.col("query_id"), given_negatives=pl.lit([], pl.List(pl.String))
    )
    for name, rows, schema in (("documents", docs, DOCUMENT), ("queries", asked, QUERY)):
        rows = rows.with_columns(
            source=pl.lit(name), origin=pl.lit("public"), task=pl.lit("retrieval")
        )
        arrays = [
            rows[field.name].to_arrow().cast(field.type)
            if field.name in rows.columns
            else pa.nulls(len(rows), field.type)
            for field in schema
        ]
        context.write(name, pa.table(arrays, schema=schema), schema, rows_per_shard=65_536)


def against_peer(
    folder: Path,
    model: str,
    tables: Sequence[str],
    size: tuple[int, int],
    dtypes: Sequence[str],
) -> str:
    """Speed from Parquet to Parquet, and how many negatives are the same."""
    queries, documents = real_rows(tables, *size)
    names = str(folder / "queries.parquet"), str(folder / "documents.parquet")
    pq.write_table(queries, names[0])
    pq.write_table(documents, names[1])
    cache = str(folder / "cache")
    lines = [
        f"## {len(queries):,} real queries, {len(documents):,} real documents, encoding included\n",
        "| miner | seconds | against the peer | peak GiB |",
        "|---|---|---|---|",
    ]
    peer = [sys.executable, "-c", PEER, model, *names, str(folder / "peer.parquet"), str(NEGATIVES)]
    slow, memory, _ = timed(peer)
    lines.append(f"| sentence-transformers, float32 | {slow:,.0f} | 1.0 | {memory:.2f} |")
    for dtype in dtypes:
        for label, margin in (("", "0.95"), (", again with another margin", "0.9")):
            more = [str(NEGATIVES), dtype, cache, margin]
            ours = [sys.executable, "-c", OURS, model, *names, str(folder / f"ours-{dtype}"), *more]
            seconds, memory, _ = timed(ours)
            lines.append(
                f"| ours, {dtype}{label} | {seconds:,.0f} | {slow / seconds:.1f} | {memory:.2f} |"
            )
    lines += ["", *same_negatives(folder, model, queries, documents, cache, dtypes), ""]
    return "\n".join(lines) + changed_document(folder, model, documents, cache)


def same_negatives(
    folder: Path,
    model: str,
    queries: pa.Table,
    documents: pa.Table,
    cache: str,
    dtypes: Sequence[str],
) -> Iterator[str]:
    """Ours without clusters in each precision, against the peer's, query by query."""
    found = {}
    for dtype in dtypes:
        options = {"name": f"mine-{dtype}", "dtype": dtype, "cache": cache}
        deduped, mine = mining_steps(model, queries, documents, **options)
        run_steps([deduped, mine], str(folder / "same"), executor="local")
        rows = read_table(Folder(str(folder / "same")).folder(mine.place), "mined")
        found[dtype] = rows.select(["negatives", "negative_scores"]).to_pylist()
    ids = {text: name for name, text in zip(*documents.to_pydict().values(), strict=True)}
    number = {text: i for i, text in enumerate(queries["query"].to_pylist())}
    same, ties, other = 0, 0, 0
    for row in pq.read_table(folder / "peer.parquet").to_pylist():
        mined = found["float32"][number[row["query"]]]
        theirs = [ids[row[f"negative_{i}"]] for i in range(1, NEGATIVES + 1)]
        scores = dict(zip(mined["negatives"], mined["negative_scores"], strict=True))
        last = min(scores.values(), default=0.0)
        known = [scores.get(name, last) for name in theirs]
        if theirs == mined["negatives"]:
            same += 1
        elif np.allclose(known, mined["negative_scores"], rtol=0, atol=TIE):
            ties += 1
        else:
            other += 1
    yield (
        f"Of {same + ties + other:,} queries for which the peer finds {NEGATIVES}: {same:,} have "
        f"the same negatives in the same order, {ties:,} but for ties within {TIE:g}, "
        f"{other:,} others."
    )
    if "bfloat16" not in found:
        return
    shared = [
        len({*a["negatives"]} & {*b["negatives"]}) / max(1, len(a["negatives"]))
        for a, b in zip(found["float32"], found["bfloat16"], strict=True)
    ]
    yield f"In bfloat16 {100 * float(np.mean(shared)):.2f}% of the negatives are those of float32."


def changed_document(folder: Path, model: str, documents: pa.Table, cache: str) -> str:
    """How many texts are encoded after one of them changed."""
    from datagen.cached_encoder import CachedEncoder

    texts = documents["text"].to_pylist()
    texts[len(texts) // 2] += " Changed."
    encoder = CachedEncoder(model, root=cache, dtype="float32")
    start = time.perf_counter()
    encoder.encode(texts, stored="float32")
    seconds = time.perf_counter() - start
    return (
        f"One of {len(texts):,} documents changed: {encoder.encoded} encoded, {encoder.found:,} "
        f"found in the cache, {seconds:.1f} s with loading the model.\n"
    )


def mining_steps(
    model: str, queries: pa.Table, documents: pa.Table, **options: Any
) -> tuple[Step, Step]:
    """The rows as a step, and their mining without clusters."""
    from datagen.mine import mine_negatives

    work = partial(_write, queries=queries, documents=documents)
    deduped = Step(name="deduped", version=1, config={}, inputs={}, work=work)
    options = {"negatives": NEGATIVES, "stored": "float32", **options}
    return deduped, mine_negatives(deduped, encoder=model, **options)


def unit_vectors(count: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def write_vectors(folder: Path, count: int, width: int) -> None:
    schema, size = embedding_schema("doc_id", "float16"), 250_000
    for index, start in enumerate(range(0, count, size)):
        vectors = unit_vectors(min(size, count - start), width, index)
        ids = pa.chunked_array([[str(start + i) for i in range(len(vectors))]])
        table = embedding_table(ids, vectors, schema)
        write_shard(Folder(str(folder)), "vectors", index, table, schema)


def matmul_rate(dtype: str) -> float:
    """GFLOP/s of torch's product on two threads, the best of several shapes."""
    import torch

    rates = []
    kind = getattr(torch, dtype)
    with side_by_side(2) as run:
        for rows, columns, width in ((256, 8192, 384), (1024, 1024, 1024), (2048, 2048, 2048)):
            left, right = torch.randn(rows, width).to(kind), torch.randn(width, columns).to(kind)
            work = partial(_product, left, right)
            list(run(work, range(4)))
            count = max(8, int(6e10 / (2 * rows * columns * width)))
            start = time.perf_counter()
            list(run(work, range(count)))
            rates.append(count * 2 * rows * columns * width / (time.perf_counter() - start))
    return max(rates) / 1e9


def _product(left: Any, right: Any, _: int) -> None:
    left @ right


def search_alone(folder: Path, sizes: Sequence[int], queries: int) -> str:
    lines = [
        "## Search alone: width 384, float16 on disk, top 24, two threads\n",
        "| documents | queries | seconds | GFLOP/s | of torch's float32 product "
        "| of its bfloat16 product | peak GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in sizes:
        place = folder / f"vectors-{size}"
        write_vectors(place, size, 384)
        before = [matmul_rate(dtype) for dtype in ("float32", "bfloat16")]
        command = [sys.executable, "-c", SEARCH, str(place), str(queries)]
        _, memory, printed = timed(command)
        after = [matmul_rate(dtype) for dtype in ("float32", "bfloat16")]
        # Other work on the machine comes and goes.
        rates = [(one + two) / 2 for one, two in zip(before, after, strict=True)]
        seconds = float(printed)
        own = 2 * queries * size * 384 / seconds / 1e9
        lines.append(
            f"| {size:,} | {queries:,} | {seconds:.1f} | {own:.0f} "
            + "".join(f"| {own / rate:.0%} of {rate:.0f} " for rate in rates)
            + f"| {memory:.2f} |"
        )
        for path in place.iterdir():
            path.unlink()
    return "\n".join(lines) + "\n"


def exactness(folder: Path, model: str, queries: pa.Table, documents: pa.Table) -> str:
    """Ids and order against brute force in three block sizes, and mining on three nodes."""
    lines = [
        f"## {len(queries):,} x {len(documents):,} against brute force, top 24\n",
        "| vectors | blocks | as float64 sums in numpy | as exact sums | as float32 products |",
        "|---|---|---|---|---|",
    ]
    options = {"name": "mine", "cache": str(folder / "cache")}
    steps = mining_steps(model, queries, documents, **options)
    run_steps(steps, str(folder / "one"), executor="local")
    root = Folder(str(folder / "one")).folder(steps[1].place)
    real = [
        Embeddings(root, [name for name in root.names() if name.startswith(kind)])[:]
        for kind in ("query", "doc")
    ]
    sizes = len(queries), len(documents)
    kinds = {
        "random": [unit_vectors(count, 384, seed) for seed, count in enumerate(sizes)],
        "real": real,
    }
    for kind, (left, right) in kinds.items():
        exact, rounded = brute_force(left, right, np.float64), brute_force(left, right, np.float32)
        for blocks in ((256, 8192), (100, 5000), (1024, 16_384)):
            with side_by_side(2) as run:
                found = top_k(
                    left, right, k=24, run=run, query_block=blocks[0], document_block=blocks[1]
                )
            same, near = (found.rows == exact).all(1), (found.rows == rounded).all(1)
            settled, apart = exact_sums(left, right, found.rows, exact)
            lines.append(
                f"| {kind}, {len(left):,} x {len(right):,} | {blocks[0]} x {blocks[1]} "
                f"| {same.sum():,} of {len(left):,} | {settled:,} | {near.sum():,} |"
            )
            if apart:
                lines[0] += (
                    f"\nWith {kind} vectors in blocks of {blocks[0]} x {blocks[1]}, the exact sums "
                    f"of two documents in one place are at most {apart:.1e} apart.\n"
                )
    names = [str(folder / f"{name}.parquet") for name in ("queries", "documents")]
    for name, table in zip(names, (queries, documents), strict=True):
        pq.write_table(table, name)
    places = [str(Path(__file__).parent), model, *names, options["cache"], str(folder / "three")]
    subprocess.run([sys.executable, "-c", CLUSTER, *places], check=True, capture_output=True)
    shards = {
        place: [
            (shard.name, shard.sha256)
            for shard in read_manifest(Folder(str(folder / place)).folder(steps[1].place)).shards
        ]
        for place in ("one", "three")
    }
    alike = "the same bytes" if shards["one"] == shards["three"] else "OTHER BYTES"
    lines.append(
        f"\nMining the real ones on three Ray nodes, in ranges of {RANGE:,} documents, gives "
        f"{alike} as in one process ({len(shards['one'])} shards)."
    )
    return "\n".join(lines) + "\n"


def exact_sums(
    left: np.ndarray, right: np.ndarray, found: np.ndarray, float64: np.ndarray
) -> tuple[int, float]:
    """Queries whose rows are the best by exact sums, and how far the sums in dispute are apart.

    Products of float32 are exact in float64 and `fsum` rounds their sum once; it is asked where
    the rows differ from those by numpy's float64 sums, which round at each addition.
    """
    right_count, apart = int((found == float64).all(1).sum()), 0.0
    for query in np.flatnonzero((found != float64).any(1)):
        rows = np.union1d(found[query], float64[query])
        products = left[query].astype(np.float64) * right[rows].astype(np.float64)
        sums = np.array([math.fsum(one) for one in products])
        best = rows[np.lexsort((rows, -sums.astype(np.float32)))][: found.shape[1]]
        right_count += bool((best == found[query]).all())
        score = dict(zip(rows.tolist(), sums.tolist(), strict=True))
        places = np.flatnonzero(found[query] != float64[query])
        pairs = zip(found[query][places].tolist(), float64[query][places].tolist(), strict=True)
        apart = max(apart, *(abs(score[a] - score[b]) for a, b in pairs))
    return right_count, apart


def brute_force(left: np.ndarray, right: np.ndarray, dtype: Any) -> np.ndarray:
    """Rows of the 24 best by score as float32, ties by row; sums in `dtype`."""
    found = []
    wide = right.astype(dtype).T
    for start in range(0, len(left), 256):
        scores = (left[start : start + 256].astype(dtype) @ wide).astype(np.float32)
        some = np.argpartition(-scores, 63, axis=1)[:, :64]
        some.sort(1)
        best = np.take_along_axis(scores, some, 1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :24]
        found.append(np.take_along_axis(some, order, 1))
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tables", nargs="+", help="Parquet tables with query and positive")
    parser.add_argument("--encoder", default="all-minilm-l6-v2")
    parser.add_argument("--small", action="store_true", help="a two-hundredth, in minutes")
    parser.add_argument("--pairs", nargs=2, type=int, metavar=("Q", "D"), help="beside the peer")
    dtypes = ("float32", "bfloat16")
    parser.add_argument("--dtypes", nargs="+", choices=dtypes, default=dtypes, help="of ours")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--cache", default=".cache/embedmix")
    parser.add_argument("--output", default="benchmarks/results/mining.md")
    arguments = parser.parse_args()
    from datagen.packaged import resolve_model

    model, _ = resolve_model(arguments.encoder, arguments.cache)
    small = " --small" if arguments.small else ""
    pairs = " --pairs {} {}".format(*arguments.pairs) if arguments.pairs else ""
    names = ("torch", "sentence-transformers", "numpy", "pyarrow")
    text = [
        f"# Mining\n\n{datetime.date.today()}, {platform.processor() or platform.machine()}, "
        f"{psutil.cpu_count()} cores; "
        + ", ".join(f"{name} {version(name)}" for name in names)
        + f". Made by `python benchmarks/mining.py TABLE...{small}{pairs}`.\n"
    ]
    with tempfile.TemporaryDirectory(prefix="mining-") as place:
        for part in arguments.parts:
            text.append(PARTS[part](Path(place), model, arguments))
            Path(arguments.output).write_text("\n".join(text))
            print(text[-1], flush=True)


def _peer(folder: Path, model: str, arguments: argparse.Namespace) -> str:
    size = arguments.pairs or ((100, 300) if arguments.small else (20_000, 60_000))
    return against_peer(folder, model, arguments.tables, size, arguments.dtypes)


def _search(folder: Path, model: str, arguments: argparse.Namespace) -> str:
    sizes = (100_000, 300_000) if arguments.small else (1_000_000, 5_000_000)
    return search_alone(folder, sizes, 512 if arguments.small else 16_384)


def _exact(folder: Path, model: str, arguments: argparse.Namespace) -> str:
    """Real vectors are those of the beginnings of real texts, which take minutes to encode."""
    size = (500, 3_000) if arguments.small else (20_000, 50_000)
    queries, documents = (pl.DataFrame(rows) for rows in real_rows(arguments.tables, *size))
    queries = queries.with_columns(pl.col("query").str.head(BEGINNING))
    documents = documents.with_columns(pl.col("text").str.head(BEGINNING))
    place = folder / "exact"
    place.mkdir()
    return exactness(place, model, queries.to_arrow(), documents.to_arrow())


PARTS = {"peer": _peer, "search": _search, "exact": _exact}


if __name__ == "__main__":
    main()
