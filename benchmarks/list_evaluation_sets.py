"""Write datagen/evaluation_sets.jsonl out of the installed mteb.

    python benchmarks/list_evaluation_sets.py [OUTPUT]

One line a task of BENCHMARKS: name, type, benchmarks, Hub dataset, pinned revision, splits,
languages (ISO 639-3). A test compares the list with mteb where that is installed.
"""

import json
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = ("MTEB(Multilingual, v2)", "MTEB(eng, v2)")
OUTPUT = Path(__file__).parents[1] / "datagen" / "evaluation_sets.jsonl"


def tasks() -> list[dict[str, Any]]:
    """The tasks of all benchmarks, sorted by name."""
    import mteb

    found: dict[str, dict[str, Any]] = {}
    for benchmark in BENCHMARKS:
        for task in mteb.get_benchmark(benchmark).tasks:
            metadata = task.metadata
            row: dict[str, Any] = {
                "name": metadata.name,
                "type": metadata.type,
                "benchmarks": [],
                "repo": metadata.dataset["path"],
                "revision": metadata.dataset["revision"],
                "splits": sorted(metadata.eval_splits),
                "languages": [],
            }
            row = found.setdefault(metadata.name, row)
            row["benchmarks"].append(benchmark)
            row["languages"] = sorted({*row["languages"], *task.languages})
    return [found[name] for name in sorted(found)]


def main() -> None:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    lines = [json.dumps(task, ensure_ascii=False) + "\n" for task in tasks()]
    output.write_text("".join(lines), encoding="utf-8")
    print(f"{output}: {len(lines)} tasks")


if __name__ == "__main__":
    main()
