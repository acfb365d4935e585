"""Plain files as Arrow tables: Parquet, JSONL, CSV, TSV and Arrow, by path or URI.

Whole files are read at once: memory is a small multiple of the file. What cannot be opened, is cut
short or has an unknown extension is a UserError; broken lines are given back beside the good rows.
"""

import contextlib
import dataclasses
import posixpath
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from datagen.schema import UserError
from datagen.sources.lines import Decoded, decode_delimited, decode_jsonl
from datagen.store import resolve

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFile:
    """One input file: where it is, and its name below the path that the user gave."""

    uri: str
    name: str

    @property
    def format(self) -> str | None:
        """`parquet`, `jsonl`, `csv`, `tsv` or `arrow`; None for anything else."""
        stem, extension = posixpath.splitext(self.name)
        if extension in COMPRESSIONS:
            extension = posixpath.splitext(stem)[1]
            return _FORMATS.get(extension) if extension in _LINE_EXTENSIONS else None
        return _FORMATS.get(extension)

    @property
    def compression(self) -> str | None:
        return COMPRESSIONS.get(posixpath.splitext(self.name)[1])


_FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_LINE_EXTENSIONS = (".jsonl", ".ndjson", ".csv", ".tsv")
EXPECTED = ".parquet, .jsonl, .csv, .tsv (plain, .gz or .zst), .arrow or .feather"


def data_files(paths: Sequence[str]) -> list[DataFile]:
    """The files behind the paths, in order; a folder stands for its data files, sorted."""
    return [file for path in paths for file in _expand(path)]


def _expand(path: str) -> Iterator[DataFile]:
    filesystem, place = resolve(path)
    info = filesystem.get_file_info(place)
    if info.type == pyarrow.fs.FileType.NotFound:
        raise UserError(
            found=f"{path} does not exist",
            expected="an input file",
            do="check the path",
            exit_status=2,
        )
    if info.type != pyarrow.fs.FileType.Directory:
        file = DataFile(uri=path, name=posixpath.basename(place))
        if file.format is None:
            raise UserError(
                found=f"{path}: unknown extension",
                expected=EXPECTED,
                do="convert or rename the file",
                exit_status=2,
            )
        yield file
        return
    selector = pyarrow.fs.FileSelector(place, recursive=True)
    names = sorted(
        posixpath.relpath(child.path, place)
        for child in filesystem.get_file_info(selector)
        if child.type == pyarrow.fs.FileType.File
    )
    visible = [n for n in names if not any(part[0] in "._" for part in n.split("/"))]
    files = [DataFile(uri=f"{path.rstrip('/')}/{n}", name=n) for n in visible]
    files = [file for file in files if file.format]
    if not files:
        raise UserError(
            found=f"no data files in the folder {path}", expected=EXPECTED, do="check the path"
        )
    yield from files


def read_bytes(file: DataFile) -> bytes:
    """The file's content, decompressed."""
    filesystem, place = resolve(file.uri)
    with (
        file_errors(file.uri),
        filesystem.open_input_stream(place, compression=file.compression) as stream,
    ):
        return stream.read()


@contextlib.contextmanager
def file_errors(uri: str) -> Iterator[None]:
    """Turn what pyarrow says about an unreadable file into a UserError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise UserError(
            found=f"{uri} cannot be read: {reason}",
            expected="a whole file of the format that its extension names",
            do="fetch or write the file again, or leave it out",
        ) from error


def decode(file: DataFile) -> Decoded:
    """All rows of one file; UserError when the file as a whole is unreadable."""
    assert file.format is not None
    return _DECODERS[file.format](file)


def _parquet(file: DataFile) -> Decoded:
    filesystem, place = resolve(file.uri)
    with file_errors(file.uri):
        table = pq.ParquetFile(place, filesystem=filesystem).read()
    return Decoded(table=plain_columns(table), positions=range(table.num_rows))


def _arrow(file: DataFile) -> Decoded:
    filesystem, place = resolve(file.uri)
    with file_errors(file.uri):
        data = filesystem.open_input_file(place).read_buffer()
        is_file = data.slice(0, 6).to_pybytes() == b"ARROW1"
        reader = pa.ipc.open_file(data) if is_file else pa.ipc.open_stream(data)
        table = reader.read_all()
    return Decoded(table=plain_columns(table), positions=range(table.num_rows))


def plain_columns(table: pa.Table) -> pa.Table:
    """The table without dictionary encoding and without metadata, so that files can be joined."""
    fields = [
        f.with_type(f.type.value_type if pa.types.is_dictionary(f.type) else f.type)
        for f in table.schema
    ]
    return table.cast(pa.schema(fields)).replace_schema_metadata(None)


def _jsonl(file: DataFile) -> Decoded:
    return decode_jsonl(read_bytes(file))


def _delimited(file: DataFile) -> Decoded:
    with file_errors(file.uri):
        return decode_delimited(
            read_bytes(file), delimiter="\t" if file.format == "tsv" else ",", where=file.uri
        )


_DECODERS: dict[str, Callable[[DataFile], Decoded]] = {
    "parquet": _parquet,
    "jsonl": _jsonl,
    "csv": _delimited,
    "tsv": _delimited,
    "arrow": _arrow,
}
