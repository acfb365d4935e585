"""Models of the Hugging Face Hub at one commit, in the Hub's own cache on this machine.

A branch or tag becomes its commit once, before anything is encoded; a commit whose files are all
here needs no network. Only what a model folder needs is fetched: safetensors, tokenizer and
configurations; pickled weights and code never. The endpoint comes from HF_ENDPOINT, the token from
HF_TOKEN alone.
"""

import fnmatch
import functools
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from datagen.schema import UserError
from datagen.sources.hub import COMMIT, TIMEOUT_S, api, hub_errors

FETCHED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")


@dataclass(frozen=True)
class HubName:
    """`owner/name`, and what was given behind an `@`."""

    repo: str
    revision: str

    def commit(self) -> str:
        """The commit that the revision names now; once per process."""
        return _commit(self.repo, self.revision)


def hub_name(text: str) -> HubName | None:
    """`owner/name` or `owner/name@revision` (a commit, branch or tag; `main` unless given)."""
    found = _NAME.fullmatch(text)
    return HubName(found[1], found[2] or "main") if found else None


@functools.lru_cache(maxsize=256)
def _commit(repo: str, revision: str) -> str:
    return revision if COMMIT.fullmatch(revision) else str(_info(repo, revision).sha)


def _info(repo: str, revision: str) -> Any:
    with hub_errors(repo, revision, what="model"):
        return api().model_info(repo, revision=revision, timeout=TIMEOUT_S)


@functools.lru_cache(maxsize=256)
def fetch_model(repo: str, commit: str) -> str:
    """The folder of a model's files on this machine; UserError within seconds when there is no
    way to them."""
    from huggingface_hub import errors, snapshot_download

    arguments: dict[str, Any] = {"revision": commit, "allow_patterns": list(FETCHED)}
    try:
        return snapshot_download(repo, local_files_only=True, **arguments)
    except errors.LocalEntryNotFoundError:
        _refuse_unsafe(repo, [file.rfilename for file in _info(repo, commit).siblings])
    client = api()
    arguments |= {"endpoint": client.endpoint, "token": client.token}
    with hub_errors(repo, commit, what="model"):
        return snapshot_download(repo, etag_timeout=TIMEOUT_S, **arguments)


def _refuse_unsafe(repo: str, names: list[str]) -> None:
    """UserError for weights that are pickled only, before anything is fetched."""
    safe = {PurePosixPath(name).parent for name in names if name.endswith(".safetensors")}
    pickled = [name for name in names if fnmatch.fnmatch(name, "*pytorch_model*.bin")]
    alone = sorted(name for name in pickled if PurePosixPath(name).parent not in safe)
    if alone or not safe:
        raise UserError(
            found=f"{repo} has " + (", ".join(alone) or "no weights") + " and no safetensors there",
            expected="*.safetensors: pickled weights are never loaded",
            do="choose a revision or a model with safetensors, or convert it",
        )
