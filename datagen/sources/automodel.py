"""Which files hold the rows of a layout and which the documents that rows name by id.

Most layouts are files of rows alone. NeMo Automodel's are a JSON file that names folders of
documents (`{"corpus": [{"path": ...}], "data": [...]}`), or a folder with `queries.*` beside
`corpus.*` or `corpus/`; a `merlin_metadata.json` or `dataset_metadata.json` with them gives the
instruction.
"""

import dataclasses
import json
import posixpath
from collections.abc import Sequence
from typing import Any

from datagen.schema import UserError
from datagen.sources.formats import (
    FORMATS,
    MAX_JSON_BYTES,
    TABLES,
    DataFile,
    data_files,
    read_bytes,
)
from datagen.sources.saved import saved_files
from datagen.store import Folder, resolve

METADATA = ("merlin_metadata.json", "dataset_metadata.json")
DOCUMENTS, QUERIES = "corpus", "queries"  # as the layout calls them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gathered:
    """The files of a source: rows, documents by id, and the instruction that is beside them."""

    files: tuple[DataFile, ...]
    documents: tuple[DataFile, ...] = ()
    instruction: str | None = None


def gather(paths: Sequence[str], *, split: str | None, documents: Sequence[str]) -> Gathered:
    """The files behind the paths, in order; UserError for a path that is not there."""
    rows: list[DataFile] = []
    texts = data_files(documents) if documents else []
    folders = [*documents]
    for path in paths:
        found, beside = _expand(path, split)
        rows += found
        if not documents:
            folders += [*beside, path]
            texts += [file for place in beside for file in data_files([place])]
    named = {file.uri: file for file in texts}
    instruction = _instruction(folders) if named else None
    return Gathered(files=tuple(rows), documents=tuple(named.values()), instruction=instruction)


def _expand(path: str, split: str | None) -> tuple[list[DataFile], list[str]]:
    """(files of rows, places of documents)."""
    saved = saved_files(path, split=split)
    if saved is not None:
        return saved, []
    found = data_files([path], formats=(*TABLES, "tmx", "po"), named=tuple(FORMATS.values()))
    if len(found) == 1 and found[0].uri == path:
        return found, _named_in(found[0]) if found[0].format == "json" else []
    queries = [file for file in found if _head(file) == QUERIES]
    beside = [file.uri for file in found if _head(file) == DOCUMENTS]
    return (queries, beside) if queries and beside else (found, [])


def _head(file: DataFile) -> str:
    """The first word of the path below the folder: `corpus` of `corpus/train.parquet`."""
    return file.name.partition("/")[0].partition(".")[0]


def _named_in(file: DataFile) -> list[str]:
    """The folders of documents that a JSON file names, relative to it."""
    try:
        value = json.loads(read_bytes(file, limit=MAX_JSON_BYTES))
    except ValueError:  # lines of JSON name none; anything else is refused when it is read
        return []
    named = value.get(DOCUMENTS) if isinstance(value, dict) else None
    named = [named] if isinstance(named, dict) else named or []
    if len(named) > 1:
        raise UserError(
            found=f"{file.uri} names {len(named)} folders of documents",
            expected="one: ids are those of one folder",
            do="write one file for each, and make each a source",
        )
    parent = posixpath.dirname(file.uri)
    return [_beside(parent, item["path"]) for item in named if item.get("path")]


def _beside(parent: str, path: str) -> str:
    if "://" in path or path.startswith("/"):
        return path
    return (
        posixpath.normpath(posixpath.join(parent, path))
        if "://" not in parent
        else (f"{parent}/{path.removeprefix('./')}")
    )


def _instruction(places: Sequence[str]) -> str | None:
    for place in places:
        for name in METADATA:
            for folder in (Folder(place), Folder(posixpath.dirname(place) or ".")):
                metadata = _metadata(folder, name)
                if metadata.get("query_instruction"):
                    return str(metadata["query_instruction"])
    return None


def _metadata(folder: Folder, name: str) -> dict[str, Any]:
    filesystem, place = resolve(folder.uri)
    if not filesystem.get_file_info(posixpath.join(place, name)).is_file:
        return {}
    value = folder.read_json(name)
    return value if isinstance(value, dict) else {}
