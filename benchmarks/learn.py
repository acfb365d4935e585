"""What the two-stage recipe teaches a small base from real rows of many tasks, over seeds.

    python benchmarks/learn.py DATA --sources tests/shared_sources.yaml --rows 300 \\
        --output out/learn --tasks DATA/tasks_dev/banking77 ... --tables stages merging negatives

Takes the first rows of each Parquet file of DATA by a hash, builds their mix as the demo does
(cleaned, deduplicated, kept apart from DATA/tasks_dev, with queries that two small LLMs write for
English passages, mined with MiniLM) and gives it, with six layers of SmolLM2-135M, to
recipes/ablate.py, whose options the others are.
"""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any, Literal

import polars as pl

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")


def sample(data: Path, place: Path, rows: int) -> None:
    """The Parquet files of a folder with so many rows each, under the same paths."""
    for file in sorted(set(data.rglob("*.parquet")) - set(data.glob("tasks_dev/**/*.parquet"))):
        table, target = pl.read_parquet(file), place / file.relative_to(data)
        order = table.select(pl.struct(pl.all()).hash(1).arg_sort()).to_series()
        target.parent.mkdir(parents=True, exist_ok=True)
        table[order.head(rows).sort()].write_parquet(target)


def with_written(public: Any, *, tasks: Path, rows: int, encoder: str, cache: str) -> Any:
    """The pairs of a step and what the LLMs of the demo write for its English passages."""
    from datagen.clean import clean
    from datagen.decontaminate import decontaminate
    from datagen.dedup import dedup
    from datagen.language import tag_language
    from datagen.synthesize import LLM, RoundTrip, synthesize

    llms = (
        LLM(name="SmolLM2-135M-Instruct", model="smollm2-135m-instruct", licence="Apache-2.0"),
        LLM(name="Gemma-3-270M", model="gemma3-270m", licence="Gemma", chat=False),
    )
    found = RoundTrip(encoder=encoder, languages=("eng",), documents=1000)
    asked = {"rows": {"retrieval": rows}, "round_trip": found, "block_requests": 32}
    written = synthesize(public, tasks=None, llms=llms, cache=cache, **asked)
    written = tag_language(clean(written, name="clean_written"), name="language_written")
    both = dedup(written, against=public, name="dedup_written")
    return decontaminate(both, against=[str(tasks)], name="decontaminate_written")


def build(
    data: Path,
    sources: str,
    output: Path,
    *,
    rows: int,
    written: int,
    negatives_in: Literal["any", "same", "other"],
    cache: str,
) -> tuple[str, str]:
    """The mix and the base."""
    import ray

    from datagen.mine import mine_negatives
    from datagen.mining_rules import Rules
    from datagen.mix import write_mix
    from datagen.packaged import resolve_model
    from datagen.stages import Stage
    from datagen.steps import in_order, run_steps
    from recipes.public_pairs import public_pairs, read_sources
    from trainer.base import prepare_base

    if not (output / "data").exists():
        sample(data, output / "data", rows)
    read = read_sources(sources, data=str(output / "data"))
    *_, pairs = public_pairs(read, against=[str(data / "tasks_dev")])
    encoder, _ = resolve_model("all-minilm-l6-v2", cache)
    if written:
        more = {"rows": written, "encoder": encoder, "cache": cache}
        pairs = with_written(pairs, tasks=data / "tasks_dev", **more)
    stages = [
        Stage(name="pretrain", negatives=1, tasks=("retrieval",)),
        Stage(name="finetune", negatives=4),
    ]
    mined = mine_negatives(pairs, encoder=encoder, rules=Rules(languages=negatives_in))
    mix = write_mix(pairs, mined, stages=stages, seed=0)
    run_steps(in_order(mix), str(output))
    ray.shutdown()  # its workers hold memory that the runs need
    llm, _ = resolve_model("smollm2-135m-instruct", cache)
    return str(output / "mix"), prepare_base(llm, str(output / "base"), layers=6, max_length=128)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--sources", required=True, metavar="YAML")
    parser.add_argument("--rows", type=int, default=300, help="of each file")
    parser.add_argument("--written", type=int, default=200, help="rows of LLMs (0: without any)")
    parser.add_argument(
        "--negatives-in",
        choices=("any", "same"),
        default="any",
        help="languages: MiniLM knows English alone, and ranks others by little more than chance",
    )
    parser.add_argument("--output", type=Path, required=True)
    arguments, others = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    cache = os.path.abspath(os.environ.get("EMBEDMIX_CACHE", ".cache/embedmix"))
    told = {name: getattr(arguments, name) for name in ("rows", "written", "negatives_in")}
    mix, base = build(arguments.data, arguments.sources, arguments.output, **told, cache=cache)
    from recipes.ablate import main as ablate

    return ablate(["--mix", mix, "--base", base, "--output", str(arguments.output), *others])


if __name__ == "__main__":
    sys.exit(main())
