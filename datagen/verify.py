"""Check what the trainer trusts in a finished mix: bytes, schemas, row numbers, scores, ledger.

Row by row checks run on whole columns, one shard at a time; only the query ids of a stage are held
together (16 bytes each). A shard whose bytes are already known to be damaged is reported once and
not read further. Cost: every byte is read once for its digest, number columns once more.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datagen.overview import LEDGER, ledger_of, steps_beside, unbalanced
from datagen.schema import MIX_DOCUMENT, MIX_ROW, ORIGINS, STAGES, UserError, check_schema
from datagen.store import MANIFEST, Folder, Manifest, Shard, open_shard, read_manifest, verify

ID_DIGITS = 32
SCHEMAS = {"documents": MIX_DOCUMENT, **dict.fromkeys(STAGES, MIX_ROW)}


def verify_mix(mix_folder: str) -> list[str]:
    """Problems of a finished mix as sentences, none when it is sound.

    The folder of any other step is checked for its files and its ledger. UserError when there is no
    readable manifest.
    """
    folder = Folder(mix_folder)
    manifest = read_manifest(folder)
    problems = verify(folder)
    if folder.read_json(MANIFEST).get("digest") != manifest.digest:
        problems.append(f"{MANIFEST}: its digest is not that of the shards it lists")
    if "stages" not in manifest.config:
        return problems + unbalanced(ledger_of([manifest]))
    damaged = {problem.partition(":")[0] for problem in problems}
    sound = [shard for shard in manifest.shards if shard.name not in damaged]
    readable = []
    for shard in sound:
        wrong = _schema_problem(folder, shard)
        problems += [wrong] if wrong else []
        readable += [] if wrong else [shard]
    whole = len(readable) == len(manifest.shards)
    problems += _document_problems(folder, readable)
    problems += _stage_problems(folder, manifest, readable, whole=whole)
    return problems + _ledger_problems(folder, manifest)


def _schema_problem(folder: Folder, shard: Shard) -> str | None:
    if shard.table not in SCHEMAS:
        return f"{shard.name}: a mix has no table {shard.table!r}"
    try:
        check_schema(open_shard(folder, shard.name), SCHEMAS[shard.table], where=shard.name)
    except UserError as error:
        return f"{shard.name}: schema differs: found {error.found}; expected {error.expected}"
    return None


def _document_problems(folder: Folder, shards: Iterable[Shard]) -> list[str]:
    ids = _Ids("doc_id")
    for shard in shards:
        if shard.table == "documents":
            ids.add(shard.name, open_shard(folder, shard.name)["doc_id"])
    return ids.problems("documents")


def _stage_problems(
    folder: Folder, manifest: Manifest, shards: Iterable[Shard], *, whole: bool
) -> list[str]:
    documents = manifest.rows("documents")
    problems, kept = [], []
    for stage in manifest.config["stages"]:
        ids = _Ids("query_id")
        if not manifest.rows(stage["name"]):
            problems.append(f"stage {stage['name']!r} has no rows")
        for shard in (s for s in shards if s.table == stage["name"]):
            table = open_shard(folder, shard.name)
            ids.add(shard.name, table["query_id"])
            problems += [
                f"{shard.name}: {found}" for found in row_problems(table, stage, documents)
            ]
        problems += ids.problems(stage["name"])
        kept.append(ids.values())
    if whole:
        problems += _kept_problem(manifest, kept)
    return problems


def _kept_problem(manifest: Manifest, kept: list[np.ndarray]) -> list[str]:
    found = len(np.unique(np.concatenate(kept))) if kept else 0
    recorded = sum(row["kept"] for row in manifest.ledger)
    if found == recorded:
        return []
    return [f"the stages hold {found:,} different queries, the ledger kept {recorded:,}"]


class _Ids:
    """The 128-bit ids of a table, gathered shard by shard, 16 bytes each."""

    def __init__(self, column: str):
        self.column = column
        self.parts: list[np.ndarray] = []
        self.found: list[str] = []

    def add(self, shard: str, ids: pa.ChunkedArray) -> None:
        text = "".join(ids.to_pylist())
        lengths = pc.unique(pc.binary_length(ids)).to_pylist()
        try:
            data = bytes.fromhex(text)
        except ValueError:
            lengths = []
        if lengths != [ID_DIGITS]:
            self.found.append(f"{shard}: a {self.column} is not {ID_DIGITS} hexadecimal digits")
            return
        self.parts.append(np.frombuffer(data, dtype="S16"))

    def values(self) -> np.ndarray:
        return np.concatenate(self.parts) if self.parts else np.empty(0, dtype="S16")

    def problems(self, table: str) -> list[str]:
        values = np.sort(self.values())
        repeated = values[1:][values[1:] == values[:-1]]
        if not len(repeated):
            return self.found
        example = bytes(repeated[0]).ljust(ID_DIGITS // 2, b"\0").hex()
        sentence = f"{table}: {len(repeated):,} rows repeat a {self.column}, for example {example}"
        return [*self.found, sentence]


@dataclass(frozen=True)
class _Lists:
    """A list column taken apart: the row of every value, the values, the length of every row."""

    rows: np.ndarray
    values: np.ndarray
    lengths: np.ndarray
    has_nulls: bool


def _lists(column: pa.ChunkedArray) -> _Lists:
    flat = pc.list_flatten(column)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    rows = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    has_nulls = flat.null_count > 0
    values = pc.fill_null(flat, -1).to_numpy() if has_nulls else flat.to_numpy()
    return _Lists(rows, values, lengths, has_nulls)


def row_problems(table: pa.Table, stage: Mapping[str, Any], documents: int) -> Iterator[str]:
    """What is wrong with the rows of one shard of a stage; `documents` is how many there are."""
    sides = {}
    for side in ("positive", "negative"):
        numbers, scores = _lists(table[f"{side}s"]), _lists(table[f"{side}_scores"])
        sides[side] = numbers
        yield from _number_problems(side, numbers, documents)
        yield from _score_problems(side, numbers, scores)
    positives, negatives = sides["positive"], sides["negative"]
    yield from _say(np.flatnonzero(positives.lengths < 1), "without a positive")
    few = np.flatnonzero(negatives.lengths < _needed(table, stage))
    yield from _say(few, f"with fewer than {stage['negatives']} negatives")
    both = np.isin(_keys(negatives, documents), _keys(positives, documents))
    yield from _say(negatives.rows[both], "with a positive among the negatives")
    for column, known in (("task", stage["tasks"]), ("origin", ORIGINS)):
        strange = pc.invert(pc.is_in(table[column], pa.array(list(known), pa.string())))
        yield from _say(
            np.flatnonzero(strange.to_numpy()), f"whose {column} is not one of {', '.join(known)}"
        )


def _number_problems(side: str, numbers: _Lists, documents: int) -> Iterator[str]:
    if numbers.has_nulls:
        yield f"a {side} is null"
    outside = (numbers.values < 0) | (numbers.values >= documents)
    yield from _say(numbers.rows[outside], f"with a {side} outside the {documents:,} documents")
    keys = np.sort(_keys(numbers, documents))
    repeated = keys[1:][keys[1:] == keys[:-1]] // max(1, documents)
    yield from _say(repeated, f"with a {side} twice")


def _score_problems(side: str, numbers: _Lists, scores: _Lists) -> Iterator[str]:
    different = np.flatnonzero(numbers.lengths != scores.lengths)
    yield from _say(different, f"with more or fewer {side} scores than {side}s")
    if scores.has_nulls:
        yield f"a {side} score is null"
    yield from _say(
        scores.rows[~np.isfinite(scores.values)], f"with a {side} score that is not finite"
    )


def _keys(numbers: _Lists, documents: int) -> np.ndarray:
    """One number for each (row, document)."""
    return numbers.rows * max(1, documents) + numbers.values


def _needed(table: pa.Table, stage: Mapping[str, Any]) -> np.ndarray:
    """How many negatives the stage asks of each row, by its task."""
    by_task = stage.get("task_negatives", {})
    encoded = table["task"].combine_chunks().dictionary_encode()
    needed = [by_task.get(task, stage["negatives"]) for task in encoded.dictionary.to_pylist()]
    return np.array(needed, dtype=np.int64)[encoded.indices.to_numpy()]


def _say(rows: np.ndarray, what: str) -> Iterator[str]:
    found = np.unique(rows)
    if len(found):
        yield f"{len(found):,} rows {what}, the first is row {found[0]}"


def _ledger_problems(folder: Folder, manifest: Manifest) -> list[str]:
    """ledger.json reconciles and says what the manifests of the mix and the steps beside it say."""
    if not folder.exists(LEDGER):
        return [f"{LEDGER}: missing"] + unbalanced(ledger_of([manifest]))
    try:
        ledger = folder.read_json(LEDGER)
        problems = [f"{LEDGER}: {sentence}" for sentence in unbalanced(ledger)]
        steps = {row["step"] for row in ledger}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"{LEDGER}: not a readable ledger: {error!r}"]
    for step in [*steps_beside(folder), manifest]:
        recorded = ledger_of([step])
        told = [row for row in ledger if row["step"] == step.name]
        if step.name in steps and _sorted(told) != _sorted(recorded):
            problems.append(f"{LEDGER}: differs from the manifest of step {step.name!r}")
        elif step.name not in steps and recorded:
            problems.append(f"{LEDGER}: has no rows of step {step.name!r}")
    return problems


def _sorted(ledger: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(ledger, key=lambda row: (row["source"], row["unit"]))
