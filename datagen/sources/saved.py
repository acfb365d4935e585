"""Folders that `datasets.save_to_disk` wrote: which Arrow files hold which split, in what order.

`dataset_dict.json` names the splits of a DatasetDict, each in a folder of its own; `state.json`
names the Arrow streams of one data set.
"""

import posixpath
from typing import Any

from datagen.schema import UserError
from datagen.sources.formats import DataFile, file_errors
from datagen.store import Folder

SPLITS, STATE, DEFAULT_SPLIT = "dataset_dict.json", "state.json", "train"


def saved_files(path: str, *, split: str | None = None) -> list[DataFile] | None:
    """The files of a saved data set, in its order; None when the path is no such folder.

    A folder of several splits gives `split`, or `train` unless one is named; UserError when it has
    no such split.
    """
    folder = Folder(path)
    if folder.exists(SPLITS):
        known = _read(folder, SPLITS).get("splits") or []
        chosen = split or DEFAULT_SPLIT
        if chosen not in known:
            raise UserError(
                found=f"{path} has the splits " + (", ".join(known) or "none"),
                expected=f"split {chosen!r}",
                do="name one of them as `split`",
                exit_status=2,
            )
        return _files(folder.folder(chosen), prefix=f"{chosen}/")
    return _files(folder) if folder.exists(STATE) else None


def _files(folder: Folder, prefix: str = "") -> list[DataFile]:
    listed = [item["filename"] for item in _read(folder, STATE).get("_data_files") or []]
    names = [posixpath.basename(name) for name in listed]  # never a file elsewhere
    missing = [name for name in names if not folder.exists(name)]
    if missing or not names:
        raise UserError(
            found=f"{folder.uri} lacks " + (", ".join(missing) or "data files"),
            expected=f"every file that {STATE} names",
            do="save or copy the data set again",
        )
    uri = folder.uri.rstrip("/")
    return [DataFile(uri=f"{uri}/{name}", name=prefix + name) for name in names]


def _read(folder: Folder, name: str) -> dict[str, Any]:
    try:
        with file_errors(f"{folder.uri}/{name}"):
            value = folder.read_json(name)
    except ValueError as error:
        raise UserError(
            found=f"{folder.uri}/{name} is not readable: {error}",
            expected="what save_to_disk wrote",
            do="save the data set again",
        ) from error
    return value if isinstance(value, dict) else {}
