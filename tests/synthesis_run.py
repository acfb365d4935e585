"""Synthesis of a few small units with a real LLM, as a process of its own that tests can kill.

    python synthesis_run.py OUTPUT CACHE EXECUTOR UNITS

vLLM changes the process that it runs in (threads of torch, memory), so tests leave it outside
theirs. Prints a JSON line with what the test asks about.
"""

import json
import logging
import os
import sys

import pyarrow as pa

from datagen.schema import DOCUMENT, document_id
from datagen.steps import Context, Step, run_steps
from datagen.synthesize import LLM, synthesize

UNIT_REQUESTS = 8
RIVERS = ("Nile", "Danube", "Ganges", "Congo", "Rhine", "Volga", "Mekong", "Amazon")


def texts(count: int) -> list[str]:
    """Different little documents."""
    return [
        f"The {RIVERS[i % 8]} carries {20 + i} ships with wheat and timber every day of the month, "
        f"and its harbour number {i} is closed when the water stands higher than {i + 3} metres."
        for i in range(count)
    ]


def documents(count: int) -> Step:
    def work(context: Context) -> None:
        rows = []
        for text in texts(count):
            row = {"doc_id": document_id(None, text), "source": "rivers", "origin": "public"}
            row |= {"task": "retrieval", "title": None, "text": text, "language": "eng"}
            rows.append(row | {"script": "Latn", "cluster": row["doc_id"]})
        table = pa.Table.from_pylist(rows, schema=DOCUMENT)
        context.write("documents", table, DOCUMENT, rows_per_shard=20)

    return Step(name="documents", version=1, config={"count": count}, inputs={}, work=work)


def main(output: str, cache: str, executor: str, units: int) -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    if executor == "ray":
        import ray

        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    llm = LLM(name="SmolLM2", model="smollm2-135m-instruct", licence="Apache-2.0", max_tokens=32)
    given = documents(units * UNIT_REQUESTS)
    asked = synthesize(
        given,
        tasks=None,
        llms=[llm],
        cache=cache,
        retrieval_per_llm=units * UNIT_REQUESTS,
        unit_requests=UNIT_REQUESTS,
    )
    done = run_steps([given, asked], output, executor=executor)  # type: ignore[arg-type]
    threads = os.environ.get("OMP_NUM_THREADS")
    sys.stdout.write(json.dumps({"llms": done[asked.name].stats["llms"], "threads": threads}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
