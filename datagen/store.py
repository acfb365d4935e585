"""Arrow shards with a manifest: the only way data is kept between steps and handed to the trainer.

A folder holds named tables. Each table is a list of shards, `<table>-00000.arrow`, in Arrow IPC
file format (random access, no compression, so that reading is memory-mapping). A shard is written
under a temporary name, hashed and renamed; `manifest.json` comes last, so a folder with one is
whole.
The same rows give the same bytes: nothing of time, host or order of arrival enters a shard.

A folder is a local path or a URI (`s3://`, `gs://`, `hdfs://` through `pyarrow.fs`, others through
fsspec). Object stores have no rename; there a file appears whole when its upload ends.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import posixpath
import uuid
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from datagen.schema import SCHEMA_VERSION, UserError, check_schema

MANIFEST = "manifest.json"
PARQUET_ROWS = 1 << 14
BATCH_ROWS = 4096  # rows per Arrow record batch inside a shard; keeps string offsets below 2 GiB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of a table: its name in the folder, row count, size in bytes and sha256."""

    table: str
    name: str
    rows: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Folder:
    """A place for shards: a local path or a URI. Cheap to make, and it crosses processes."""

    uri: str

    @cached_property
    def _place(self) -> tuple[pyarrow.fs.FileSystem, str]:
        return resolve(self.uri)

    def __reduce__(self):
        return Folder, (self.uri,)

    @property
    def filesystem(self) -> pyarrow.fs.FileSystem:
        return self._place[0]

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)

    def path(self, name: str = "") -> str:
        """The path of a file of this folder, as its file system spells it."""
        return posixpath.join(self._place[1], name) if name else self._place[1]

    def folder(self, name: str) -> "Folder":
        return Folder(f"{self.uri.rstrip('/')}/{name}")

    def exists(self, name: str = "") -> bool:
        info = self.filesystem.get_file_info(self.path(name))
        return info.type != pyarrow.fs.FileType.NotFound

    def names(self) -> list[str]:
        """Names of the files and folders directly inside, sorted."""
        selector = pyarrow.fs.FileSelector(self.path(), allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def read_bytes(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            return stream.read()

    def write_bytes(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file so that it is there whole or not at all."""
        with self.writing(name) as stream:
            stream.write(data)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[pa.NativeFile]:
        """A stream into a file that is there whole, or after an error not at all."""
        if not self.is_local:
            try:
                with self.filesystem.open_output_stream(self.path(name)) as stream:
                    yield stream
            except BaseException:
                self.delete(name)  # closing the stream has uploaded a part of the file
                raise
            return
        target = Path(self.path(name))
        with _disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
            try:
                with self.filesystem.open_output_stream(str(temporary)) as stream:
                    yield stream
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, value: Any) -> None:
        text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True)
        self.write_bytes(name, (text + "\n").encode("utf-8"))

    def delete(self, name: str) -> None:
        if self.exists(name):
            self.filesystem.delete_file(self.path(name))

    def delete_folder(self, name: str) -> None:
        if self.exists(name):
            self.filesystem.delete_dir(self.path(name))


def resolve(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system and path behind a local path or URI."""
    if "://" not in uri:
        return pyarrow.fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    try:
        return pyarrow.fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    try:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise UserError(
            found=f"{uri}: {error}",
            expected="a local path or a URI that pyarrow.fs or an installed fsspec package reads",
            do="check the scheme, or install its fsspec package (s3fs, gcsfs, ...)",
            exit_status=2,
        ) from error
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (
            errno.ENOSPC,
            errno.EACCES,
            errno.EROFS,
            errno.ENOTDIR,
            errno.EEXIST,
            errno.ENOENT,
            errno.EDQUOT,
        ):
            raise
        raise UserError(
            found=f"cannot write {path}: {os.strerror(error.errno)}",
            expected="a writable place with room for the output",
            do="free space or choose another --output, then run the same command again to resume",
        ) from error


def shard_name(table: str, index: int) -> str:
    return f"{table}-{index:05d}.arrow"


def encode_shard(table: pa.Table) -> pa.Buffer:
    """The bytes of a shard: batches of BATCH_ROWS rows whatever the chunks of the input were.

    Taking the rows copies them into fresh arrays: slices of the same rows can differ in what lies
    under nulls and beyond the last value, and Arrow would write that too.
    """
    sink = pa.BufferOutputStream()
    schema = table.schema.remove_metadata()
    with pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, table.num_rows, BATCH_ROWS):
            rows = table.slice(start, BATCH_ROWS).combine_chunks()
            batch = pa.RecordBatch.from_arrays(
                [_only_chunk(c) for c in rows.columns], schema=schema
            )
            writer.write_batch(batch.take(pa.array(range(batch.num_rows), pa.int32())))
    return sink.getvalue()


def _only_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def write_shard(folder: Folder, table: str, index: int, rows: pa.Table, schema: pa.Schema) -> Shard:
    """Write one shard; raises UserError when the rows do not have the schema."""
    check_schema(rows, schema, where=f"{folder.uri}/{table}")
    data = encode_shard(rows)
    name = shard_name(table, index)
    folder.write_bytes(name, data)
    digest = hashlib.sha256(data).hexdigest()
    return Shard(table=table, name=name, rows=rows.num_rows, bytes=data.size, sha256=digest)


def write_table(
    folder: Folder,
    table: str,
    rows: pa.Table,
    schema: pa.Schema,
    *,
    rows_per_shard: int,
    first_index: int = 0,
) -> list[Shard]:
    """Write a table as shards of a fixed number of rows (the last one may be shorter)."""
    starts = range(0, rows.num_rows, rows_per_shard)
    return [
        write_shard(folder, table, first_index + i, rows.slice(start, rows_per_shard), schema)
        for i, start in enumerate(starts)
    ]


def map_shard(folder: Folder, name: str) -> pa.Buffer:
    """The bytes of a shard; memory-mapped where the folder is local."""
    if folder.is_local:
        return pa.memory_map(folder.path(name)).read_buffer()
    return pa.py_buffer(folder.read_bytes(name))


def open_shard(folder: Folder, name: str) -> pa.Table:
    """Read a shard; memory-mapped where the folder is local."""
    return pa.ipc.open_file(map_shard(folder, name)).read_all()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder holds and how it came to be. Only `run` differs between runs."""

    name: str
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    shards: tuple[Shard, ...]
    ledger: list[dict[str, Any]]
    stats: dict[str, Any]
    run: dict[str, Any]
    schema_version: int = SCHEMA_VERSION

    @property
    def digest(self) -> str:
        """sha256 over the content of all shards: what a later step means by `this input`."""
        content = [[s.table, s.name, s.rows, s.sha256] for s in self.shards]
        return hashlib.sha256(json.dumps([self.schema_version, content]).encode()).hexdigest()

    def table(self, name: str) -> list[Shard]:
        """The shards of one table, in order."""
        return [shard for shard in self.shards if shard.table == name]

    def rows(self, table: str) -> int:
        return sum(shard.rows for shard in self.table(table))


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    folder.write_json(MANIFEST, {**dataclasses.asdict(manifest), "digest": manifest.digest})


def write_parquet(
    folder: Folder, name: str, rows: pa.Table, *, keep: np.ndarray | None = None
) -> None:
    """Write a table, or its rows where `keep`, as one Parquet file: what the file commands leave.

    Batch by batch, so that no second copy of the rows is in memory.
    """
    with folder.writing(name) as sink, pq.ParquetWriter(sink, rows.schema, compression="zstd") as w:
        for start in range(0, max(rows.num_rows, 1), PARQUET_ROWS):
            part = rows.slice(start, PARQUET_ROWS)
            if keep is not None:
                part = part.filter(arrow_array(keep[start : start + PARQUET_ROWS]))
            if part.num_rows or not start:
                w.write_table(part)


def arrow_array(values: np.ndarray) -> pa.Array:
    """Numbers or truth values without nulls as an Arrow array.

    `pa.array` does the same, but imports pandas first where that is installed: a quarter of a
    second, most of what a short command takes.
    """
    kind = pa.from_numpy_dtype(values.dtype)
    bits = values.dtype == np.bool_
    data = np.packbits(values, bitorder="little") if bits else np.ascontiguousarray(values)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(data)])


def read_manifest(folder: Folder) -> Manifest:
    """The manifest of a finished folder; UserError when it is absent or of another schema."""
    if not folder.exists(MANIFEST):
        raise UserError(
            found=f"{folder.uri} has no {MANIFEST}",
            expected="a finished folder of shards",
            do="run the command that builds it, or check the path",
            exit_status=2,
        )
    try:
        fields = folder.read_json(MANIFEST)
        version, _ = fields["schema_version"], fields["shards"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            found=f"{folder.uri}/{MANIFEST} is not readable: {error!r}",
            expected="the manifest that embedmix wrote",
            do="delete the folder and build it again",
        ) from error
    if version != SCHEMA_VERSION:
        raise UserError(
            found=f"{folder.uri} has schema version {version}",
            expected=f"schema version {SCHEMA_VERSION}",
            do="rebuild it with this version of embedmix, or install the version that wrote it",
        )
    fields.pop("digest", None)
    shards = tuple(Shard(**shard) for shard in fields.pop("shards"))
    return Manifest(**fields, shards=shards)


def read_table(folder: Folder, table: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One table of a finished folder, all shards in order, memory-mapped where local."""
    shards = read_manifest(folder).table(table)
    if not shards:
        raise UserError(
            found=f"{folder.uri} has no table {table!r}",
            expected="one of " + ", ".join(sorted({s.table for s in read_manifest(folder).shards})),
            do="check the path",
        )
    parts = [open_shard(folder, shard.name) for shard in shards]
    return pa.concat_tables([part.select(columns) if columns else part for part in parts])


def verify(folder: Folder) -> list[str]:
    """Problems of a finished folder: missing or changed shards, wrong row counts, stray files."""
    manifest = read_manifest(folder)
    problems = []
    for shard in manifest.shards:
        if not folder.exists(shard.name):
            problems.append(f"{shard.name}: missing")
            continue
        data = folder.read_bytes(shard.name)
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            problems.append(f"{shard.name}: sha256 differs from the manifest")
        elif pa.ipc.open_file(pa.py_buffer(data)).read_all().num_rows != shard.rows:
            problems.append(f"{shard.name}: row count differs from the manifest")
    known = {shard.name for shard in manifest.shards}
    stray = [n for n in folder.names() if n.endswith((".arrow", ".tmp")) and n not in known]
    return problems + [f"{name}: not in the manifest" for name in stray]
