"""Evaluation sets out of datasets of the Hugging Face Hub, at one commit.

Two layouts are known. Retrieval, as the benchmarks publish it: configurations `corpus` and
`queries` (`_id`, `title`, `text`) and judgements (`query-id`, `corpus-id`, `score`), each maybe for
one language (`de-corpus`). Anything else: every column of text, or of lists of text, that is no id,
label or language. Training splits are left out where there is another one.

Files are fetched whole into the Hub's cache: a commit that is there needs no network.
"""

import hashlib
import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from datagen.beir import CORPUS, JUDGED, QUERIES, TRAIN, beir_texts
from datagen.schema import UserError
from datagen.sources.files import read_rows
from datagen.sources.formats import DataFile
from datagen.sources.hub import api, hub_errors, resolve_commit
from datagen.task_folders import PAIRS, TEXTS, TaskTexts, as_texts

LAYOUT = 1  # of what is read out of a dataset; part of the digest
_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+))?")
_NOT_TEXT = re.compile(
    r"_?(id|idx|index|labels?|label_text|class|lang|langs|language|languages|split|score|url|"
    r"source|domain|date|timestamp|instruction|gold)|.*[-_](id|label|lang|score)"
)
_ROLE = re.compile(r"(?:^|[-_])(corpus|queries|qrels|default)$")


@dataclass(frozen=True, kw_only=True)
class HubSet:
    """A dataset repository as an evaluation set; `splits` names the only ones to read."""

    repo: str
    revision: str = "main"
    config: str = ""
    splits: tuple[str, ...] = ()
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> "HubSet":
        """Read `org/name[@revision][/config]`."""
        match = _ID.fullmatch(text)
        if match is None:
            raise UserError(
                found=f"hub:{text}",
                expected="hub:org/name, with @revision and /config if need be",
                do="mend the name",
                exit_status=2,
            )
        repo, revision, config = match.groups()
        name = f"{repo}/{config}" if config else repo
        return cls(repo=repo, revision=revision or "main", config=config or "", name=name)

    @property
    def place(self) -> str:
        return f"hub:{self.repo}@{self.revision}"

    def identity(self) -> tuple[str, str]:
        commit = resolve_commit(self.repo, self.revision)
        fields = [LAYOUT, self.repo, commit, self.config, list(self.splits)]
        return self.name, hashlib.sha256(json.dumps(fields).encode()).hexdigest()

    def read(self) -> TaskTexts:
        commit = resolve_commit(self.repo, self.revision)
        with hub_errors(self.repo, self.revision):
            api().auth_check(self.repo, repo_type="dataset")
            names = api().list_repo_files(self.repo, repo_type="dataset", revision=commit)
        chosen = self._chosen(names)
        tables = {name: self._rows(commit, name) for name in chosen}
        return _texts(self.name, tables, where=self.place)

    def _chosen(self, names: Sequence[str]) -> list[str]:
        known = [name for name in sorted(names) if DataFile(uri=name, name=name).format]
        found = [name for name in known if self._wanted(name)]
        if not self.splits and any(_split_of(name) != TRAIN for name in found if not _role(name)):
            found = [name for name in found if _role(name) or _split_of(name) != TRAIN]
        if not found:
            raise UserError(
                found=f"{self.place}: no file of "
                + " ".join(filter(None, [self.config, *self.splits])) + " among its data files: "
                + (", ".join(known[:10]) or "none"),
                expected="Parquet, JSONL, CSV, TSV or Arrow files of that configuration and split",
                do="name another configuration or revision, such as @refs/convert/parquet",
            )  # fmt: skip
        return found

    def _wanted(self, name: str) -> bool:
        parts = re.split(r"[/]", name)
        stems = [_ROLE.sub("", re.split(r"[.]", part)[0]) for part in parts]
        if self.config and self.config not in (*parts[:-1], *stems):
            return False
        return not self.splits or bool(_role(name)) or _split_of(name) in self.splits

    def _rows(self, commit: str, name: str) -> pa.Table:
        with hub_errors(self.repo, commit):
            local = api().hf_hub_download(self.repo, name, repo_type="dataset", revision=commit)
        rows, rejected = read_rows([local])
        if rejected:
            raise UserError(
                found=f"{self.place}: {len(rejected)} lines of {name} cannot be read: "
                + str(rejected[0]["error"]),
                expected="an evaluation set that is whole",
                do="name another revision",
            )
        return rows


def _role(name: str) -> str:
    """`corpus` or `queries` where a part of the name says so, with the language in front of it."""
    for part in name.split("/"):
        match = re.search(rf"(?:^|[-_])({CORPUS}|{QUERIES})(?:[-_.]|$)", part)
        if match:
            return match.group(1)
    return ""


def _split_of(name: str) -> str:
    """The split in a file's name: `data/test-00000-of-00001.parquet` -> `test`."""
    stem = posixpath.basename(name).split(".")[0]
    return re.sub(r"-\d+(-of-\d+)?$", "", stem)


def _group(name: str) -> str:
    """What files of one language have in common: the folder's name without its role."""
    folder = name.split("/")[0] if "/" in name else ""
    return "" if folder == "data" else _ROLE.sub("", folder)


def _texts(name: str, tables: dict[str, pa.Table], *, where: str) -> TaskTexts:
    """The texts of all files of a dataset, each in the layout that its columns show."""
    parts: dict[str, dict[str, list[pa.Table]]] = defaultdict(lambda: defaultdict(list))
    found = []
    for file, rows in tables.items():
        role = "qrels" if set(JUDGED) <= set(rows.schema.names) else _role(file)
        if role and (role == "qrels" or {"_id", "text"} <= set(rows.schema.names)):
            parts[_group(file)][role].append(rows)
        else:
            found.append(_plain_texts(name, rows, where=f"{where}/{file}"))
    for group in parts.values():
        corpus, queries = (_joined(group[role]) for role in (CORPUS, QUERIES))
        found.append(beir_texts(name, corpus, queries, group["qrels"], where=where))
    return TaskTexts(
        name=name,
        texts=pl.concat([pl.DataFrame(schema=TEXTS), *(task.texts for task in found)]),
        pairs=pl.concat([pl.DataFrame(schema=PAIRS), *(task.pairs for task in found)]),
    )


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    empty = pa.table({"_id": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    return pa.concat_tables([empty, *tables], promote_options="permissive")


def _plain_texts(name: str, rows: pa.Table, *, where: str) -> TaskTexts:
    """All texts of a table: the first column of text as queries, the others as documents."""
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    columns = [c for c in frame.columns if _is_text(frame.schema[c], c)]
    if not columns:
        raise UserError(
            found=f"{where}: columns " + ", ".join(f"{c} ({t})" for c, t in frame.schema.items()),
            expected="a column of text other than ids, labels and languages",
            do="name another configuration or revision",
        )
    flat = [frame[c] if frame.schema[c] == pl.String else frame[c].explode() for c in columns]
    kinds = ["query"] + ["document"] * (len(flat) - 1)
    texts = [as_texts(kind, column.drop_nulls()) for kind, column in zip(kinds, flat, strict=True)]
    pairs = pl.DataFrame(schema=PAIRS)
    if [frame.schema[c] for c in columns] == [pl.String] * 2:
        pairs = pl.DataFrame({"a": flat[0], "b": flat[1]}).drop_nulls()
    return TaskTexts(name=name, texts=pl.concat(texts), pairs=pairs)


def _is_text(kind: pl.DataType, name: str) -> bool:
    return kind in (pl.String, pl.List(pl.String)) and not _NOT_TEXT.fullmatch(name.lower())
