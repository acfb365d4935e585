"""Pairs out of any dataset of the Hugging Face Hub, at one commit.

A revision that is not a commit is resolved when the step is built, so a branch that moved is a
drifted configuration and never a silent mix of two versions. Parquet is read by HTTP ranges: the
footer when the work is planned, then the row groups and columns of each unit; other formats are
fetched whole into the Hub's cache. The endpoint comes from HF_ENDPOINT, the token from HF_TOKEN
alone; neither enters a unit or the configuration.
"""

import contextlib
import dataclasses
import fnmatch
import functools
import os
import re
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from datagen.schema import UserError
from datagen.sources import SourceRows, files
from datagen.sources.formats import DataFile, file_errors
from datagen.sources.parquet import parts, read_table
from datagen.sources.tables import TableSource, check_columns

COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT_S = 10.0
CONVERTED = "refs/convert/parquet"  # the Hub's own branch of any dataset as Parquet


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubSource(TableSource):
    """A dataset repository: `subset` and `split` pick its files by their names, or `files` does."""

    repo: str
    revision: str = "main"  # a commit, branch or tag; a commit needs no network to build the step
    subset: str | None = None
    split: str = "train"
    files: str | None = None  # a pattern such as `data/train-*.parquet`

    def config(self) -> dict[str, Any]:
        return {
            "kind": "hub",
            **self.row_map(),
            "repo": self.repo,
            "commit": resolve_commit(self.repo, self.revision),
            "subset": self.subset,
            "split": self.split,
            "files": self.files,
        }

    def plan(self) -> list[dict[str, Any]]:
        commit = resolve_commit(self.repo, self.revision)
        with hub_errors(self.repo, self.revision):
            api().auth_check(self.repo, repo_type="dataset")
            names = api().list_repo_files(self.repo, repo_type="dataset", revision=commit)
        base = {
            "kind": "hub",
            "source": self.name,
            "repo": self.repo,
            "commit": commit,
            "row_map": self.row_map(),
        }
        units: list[dict[str, Any]] = []
        for name in self._chosen(names):
            units += [{**base, "name": name, **part} for part in self._parts(commit, name)]
        return units

    def _chosen(self, names: list[str]) -> list[str]:
        known = [n for n in sorted(names) if DataFile(uri=n, name=n).format]
        patterns = [self.files] if self.files else file_patterns(self.subset, self.split)
        chosen = [n for n in known if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
        if not chosen:
            raise UserError(
                found=f"{self.repo}: no file matches " + " or ".join(patterns)
                + "; data files: " + (", ".join(known[:10]) or "none"),
                expected="Parquet, JSONL, CSV, TSV or Arrow files of that subset and split",
                do=f"give subset, split or files, or revision={CONVERTED!r}",
            )  # fmt: skip
        return chosen

    def _parts(self, commit: str, name: str) -> list[dict[str, Any]]:
        if not name.endswith(".parquet"):
            return [{}]
        with open_parquet(self.repo, commit, name) as parquet:
            check_columns(self.columns, parquet.schema_arrow.names, where=f"{self.repo}/{name}")
            return [{"part": part} for part in parts(parquet.metadata)]


def file_patterns(subset: str | None, split: str) -> list[str]:
    """Where the Hub's own tools put the files of a subset and split."""
    folders = [f"{subset}/", f"data/{subset}/"] if subset else ["", "data/"]
    return [f"{folder}{split}{rest}" for folder in folders for rest in ("-*", "/*", ".*", "_*")]


def api() -> Any:
    """The Hub's client, with the token of the environment alone."""
    from huggingface_hub import HfApi

    # `False` keeps the library from looking for a stored token.
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN") or False)


@functools.lru_cache(maxsize=1024)
def resolve_commit(repo: str, revision: str) -> str:
    """The commit that a revision names now; once per process."""
    if COMMIT.fullmatch(revision):
        return revision
    with hub_errors(repo, revision):
        return api().dataset_info(repo, revision=revision, timeout=TIMEOUT_S).sha


@contextlib.contextmanager
def hub_errors(repo: str, revision: str, *, what: str = "dataset") -> Iterator[None]:
    """Turn what the Hub's client says into what the user can do."""
    from huggingface_hub import errors

    where = f"{what} {repo} at {revision}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            found=f"{where} is gated, and this account has no access",
            expected=f"HF_TOKEN of an account that accepted the {what}'s terms",
            do=f"accept them on the page of {repo}, then set HF_TOKEN",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            found=f"{where} does not exist, or is private",
            expected=f"a {what} repository that HF_TOKEN may read",
            do="check the name; for a private one set HF_TOKEN",
        ) from error
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise UserError(
            found=f"{where} does not exist: {_first_line(error)}",
            expected="a branch, tag or commit, and files that it has",
            do=f"check the revision on the {what}'s page",
        ) from error
    except errors.HFValidationError as error:
        raise UserError(
            found=f"{repo!r} is no repository id: {_first_line(error)}",
            expected="owner/name",
            do="mend the name",
            exit_status=2,
        ) from error
    except (errors.HTTPError, OSError) as error:
        raise UserError(
            found=f"the Hub gave no answer for {where}: {_first_line(error)}",
            expected="a reachable Hub (HF_ENDPOINT)",
            do="check the network and HF_ENDPOINT, then run the same command again to resume",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


@contextlib.contextmanager
def open_parquet(repo: str, commit: str, name: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file of a dataset repository, read by HTTP ranges."""
    from huggingface_hub import HfFileSystem

    token = os.environ.get("HF_TOKEN") or False
    filesystem = HfFileSystem(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    with (
        file_errors(f"{repo}/{name}"),
        hub_errors(repo, commit),
        filesystem.open(f"datasets/{repo}@{commit}/{name}", "rb") as stream,
        pq.ParquetFile(stream) as parquet,
    ):
        yield parquet


def read(unit: dict[str, Any]) -> SourceRows:
    """The pairs of one part of one file."""
    repo, commit, name = unit["repo"], unit["commit"], unit["name"]
    if "part" in unit:
        with open_parquet(repo, commit, name) as parquet:
            table = read_table(parquet, unit["part"], files.part_columns(unit))
        return files.part_pairs(table, unit)
    with hub_errors(repo, commit):
        local = api().hf_hub_download(repo, name, repo_type="dataset", revision=commit)
    return files.read({**unit, "uri": local})
