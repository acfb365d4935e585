"""Print what came out of a run: rows per step, the LLMs, the losses, the scores.

    python recipes/summary.py out/demo

Reads the manifests and results.json under OUTPUT; writes the same tables to OUTPUT/summary.md.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

STEP_ORDER = (
    "ingest",
    "clean",
    "language",
    "hold_out",
    "dedup",
    "decontaminate",
    "write_tasks",
    "synthesize",
    "clean_synthetic",
    "language_synthetic",
    "dedup_synthetic",
    "decontaminate_synthetic",
    "mine",
)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def step_rows(output: Path) -> pl.DataFrame:
    """One row a step: what went in, what was kept, and why the rest was not."""
    rows = []
    places = [output / "steps" / name for name in STEP_ORDER] + [output / "mix"]
    for place in places:
        manifest = _read(place / "manifest.json")
        units = dict.fromkeys(row["unit"] for row in manifest["ledger"])
        for unit in units or [""]:
            ledger = [row for row in manifest["ledger"] if row["unit"] == unit]
            gone: dict[str, int] = {}
            for row in ledger:
                for reason, count in {**row["dropped"], **row["quarantined"]}.items():
                    gone[reason] = gone.get(reason, 0) + count
            reasons = sorted(gone.items(), key=lambda item: -item[1])
            rows.append(
                {
                    "step": manifest["name"],
                    "counted": unit,
                    "in": sum(row["rows_in"] for row in ledger),
                    "kept": sum(row["kept"] for row in ledger),
                    "dropped": ", ".join(f"{reason} {count:,}" for reason, count in reasons),
                    "seconds": manifest["run"].get("seconds"),
                }
            )
    return pl.DataFrame(rows)


def llm_rows(output: Path) -> pl.DataFrame:
    """One row per LLM, kind and language of request."""
    rows = []
    for row in _read(output / "steps" / "synthesize" / "manifest.json")["stats"].get("llms", []):
        first = {name: row.pop(name) for name in ("llm", "kind", "requested", "valid", "kept")}
        reasons = _counts(row.pop("reasons", {}))
        rows.append({**first, **row, "reasons": reasons})
    return pl.DataFrame(rows)


def loss_rows(output: Path) -> pl.DataFrame:
    """First and last loss of both stages of every run."""
    rows = []
    for run in sorted((output / "models").glob("run-*/run.json")):
        for stage in _read(run)["stages"]:
            tasks = {name: round(loss, 2) for name, loss in stage.pop("task_losses", {}).items()}
            told = {"skipped": _counts(stage.pop("skipped", {})), "loss_by_task": _counts(tasks)}
            rows.append({"run": run.parent.name, **stage, **told})
    return pl.DataFrame(rows)


def _counts(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def score_rows(output: Path) -> pl.DataFrame:
    """One row a model, one column a task, main scores in 0..100, and the mean per type."""
    rows = []
    for name, tasks in _read(output / "results.json").items():
        row: dict[str, Any] = {"model": name}
        for kind in sorted({task["type"] for task in tasks}):
            scores = [task["main_score"] for task in tasks if task["type"] == kind]
            row[f"mean {kind}"] = round(100 * sum(scores) / len(scores), 1)
        row |= {task["task"]: round(100 * task["main_score"], 1) for task in tasks}
        rows.append(row)
    return pl.DataFrame(rows)


def main(output: Path) -> None:
    tables = {
        "Rows": step_rows(output),
        "LLMs": llm_rows(output),
        "Losses": loss_rows(output),
        "Held-out scores (main score x 100)": score_rows(output),
    }
    layout = pl.Config(
        tbl_formatting="MARKDOWN",
        tbl_hide_column_data_types=True,
        tbl_hide_dataframe_shape=True,
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_width_chars=220,
        fmt_str_lengths=90,
        thousands_separator=True,
        set_tbl_cell_numeric_alignment="RIGHT",
    )
    with layout:
        text = "\n\n".join(f"## {title}\n\n{table}" for title, table in tables.items())
    (output / "summary.md").write_text(text + "\n", encoding="utf-8")
    print("\n" + text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
