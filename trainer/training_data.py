"""Which sources, languages and licences a mix trains on: what a model's card has to name.

One pass over some columns of the mapped rows, a shard at a time; memory does not grow with the mix.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from datagen.store import Folder, open_shard, read_manifest

_KEYS = ("task", "source", "origin", "licence", "language", "script")
_DOCUMENT_KEYS = ("source", "language", "script")


def training_data(mix: str, stages: Sequence[str]) -> dict[str, Any]:
    """The digest of a mix, and one record for each task, source and origin of these stages.

    A record has the rows of all stages together, the licences of its rows, and the languages
    (`deu_Latn`) of its queries and of the documents that came with its source.
    """
    folder = Folder(mix)
    languages: dict[str, set[str]] = {}
    for row in _counted(folder, ["documents"], _DOCUMENT_KEYS):
        languages.setdefault(row["source"], set()).update(_language(row))
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in _counted(folder, stages, _KEYS):
        key = (row["task"], row["source"], row["origin"])
        own = {"rows": 0, "licences": set(), "languages": {*languages.get(row["source"], ())}}
        one = found.setdefault(key, own)
        one["rows"] += row["count_all_sum"]
        one["licences"] |= {row["licence"]} - {None}
        one["languages"].update(_language(row))
    sources = []
    for (task, source, origin), one in sorted(found.items()):
        lists = {name: sorted(one[name]) for name in ("licences", "languages")}
        head = {"task": task, "source": source, "origin": origin, "rows": one["rows"]}
        sources.append({**head, **lists})
    return {"digest": read_manifest(folder).digest, "sources": sources}


def _counted(folder: Folder, tables: Sequence[str], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of tables by these columns."""
    counted = [
        open_shard(folder, shard.name).select(keys).group_by([*keys]).aggregate([([], "count_all")])
        for table in tables
        for shard in read_manifest(folder).table(table)
    ]
    return pa.concat_tables(counted).group_by([*keys]).aggregate([("count_all", "sum")]).to_pylist()


def _language(row: dict[str, Any]) -> set[str]:
    return {f"{row['language']}_{row['script']}"} if row["language"] and row["script"] else set()
