"""Build the public half of a mix: sources in, clean, deduplicated, decontaminated pairs out.

    python recipes/public_pairs.py --sources sources.yaml --against TASKS --output out/public
    ray job submit --working-dir . -- python recipes/public_pairs.py ... --output URI

sources.yaml lists sources, each with its `kind` and that kind's options; paths are relative to the
file, or to --data. Data sets of the published mixes are named by the catalogue (`datagen sources`),
in the file (`kind: catalog`) or with --catalog. In order of the list, earlier sources are preferred
where two have the same pair.

    - {kind: files, name: squad, task: retrieval, paths: [squad.parquet],
       columns: {query: question, text: passage, title: title}, language: eng_Latn}
    - {kind: catalog, name: f2llm-v2/miracl}

Running again does nothing for what is up to date and resumes what was interrupted.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, also inside a job

from datagen.clean import clean
from datagen.decontaminate import decontaminate
from datagen.dedup import dedup
from datagen.ingest import ingest, source
from datagen.language import tag_language
from datagen.schema import UserError
from datagen.sources import Source
from datagen.steps import Step, run_steps
from datagen.store import Manifest

LOCAL_PATHS = ("paths", "documents", "folder")  # options that name files


def public_pairs(sources: Sequence[Source], *, against: Sequence[str] = ()) -> list[Step]:
    """The steps of the public half."""
    read = ingest(*sources)
    cleaned = clean(read)
    tagged = tag_language(cleaned)
    distinct = dedup(tagged, source_priority=[source.name for source in sources])
    steps = [read, cleaned, tagged, distinct]
    return [*steps, decontaminate(distinct, against=against)] if against else steps


def read_sources(file: str, *, data: str | None = None) -> list[Source]:
    """The sources that a YAML file lists; UserError (exit status 2) where it cannot be used."""
    path = Path(file)
    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise UserError(
            found=f"{file} cannot be read: {str(error).splitlines()[0]}",
            expected="a YAML list of sources",
            do="check the path and the syntax",
            exit_status=2,
        ) from error
    if not isinstance(listed, list) or not all(
        isinstance(one, dict) and isinstance(one.get("kind"), str) for one in listed
    ):
        raise UserError(
            found=f"{file} is no list of mappings with a `kind`",
            expected="for each source a mapping: kind, name and the options of that kind",
            do="see the top of recipes/public_pairs.py for two examples",
            exit_status=2,
        )
    folder = Path(data) if data else path.parent
    return [source(**_located(one, folder)) for one in listed]


def _located(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The options with local paths under the folder, and lists as tuples."""
    made = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
    for name in LOCAL_PATHS:
        value = made.get(name)
        if isinstance(value, tuple):
            made[name] = tuple(_under(folder, one) for one in value)
        elif isinstance(value, str):
            made[name] = _under(folder, value)
    return made


def _under(folder: Path, path: str) -> str:
    return path if "://" in path else str(folder / path)


def funnel(done: Mapping[str, Manifest]) -> pl.DataFrame:
    """One row a source: pairs read, and pairs left after each step."""
    table = pl.DataFrame(schema={"source": pl.String})
    for name, manifest in done.items():
        rows = [
            {"source": row["source"], "read": row["rows_in"], name: row["kept"]}
            for row in manifest.ledger
        ]
        counts = pl.DataFrame(rows).group_by("source").sum()
        if len(table):
            counts = counts.drop("read")
        table = table.join(counts, on="source", how="full", coalesce=True)
    total = table.sum().with_columns(source=pl.lit("all"))
    return pl.concat([table.sort("source"), total]).fill_null(0)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", metavar="YAML", help="a list of sources")
    parser.add_argument("--data", metavar="DIR", help="where paths in YAML start (its own folder)")
    parser.add_argument("--catalog", nargs="+", default=[], metavar="NAME", help="catalogued sets")
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="TASKS", help="evaluation sets to keep out"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder or URI for steps/")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    try:
        sources = [source("catalog", name=name) for name in arguments.catalog]
        if arguments.sources:
            sources = read_sources(arguments.sources, data=arguments.data) + sources
        done = run_steps(public_pairs(sources, against=arguments.against), arguments.output)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    with pl.Config(tbl_rows=-1, tbl_cols=-1, fmt_str_lengths=60, tbl_hide_dataframe_shape=True):
        print(funnel(done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
