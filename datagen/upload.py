"""Put a folder into a repository of the Hub, and prove that it is there.

Data files first, README.md last: a repository whose upload was cut off has no card that speaks of
it as complete. The same call goes on where it was cut off: what the Hub has by digest is not sent
again. In the end every file of the folder is compared with the Hub's own digest of it (sha256 of a
large file, git's of a small one).

The endpoint comes from HF_ENDPOINT, the token from HF_TOKEN alone; it is written nowhere.
"""

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datagen.schema import UserError
from datagen.sources.hub import api

log = logging.getLogger("embedmix")

CARD = "README.md"
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """What was proven: `commit` has all `files` of the folder, together `size` bytes."""

    commit: str
    files: int
    size: int


def check_repo(repo: str) -> None:
    """Raise UserError for a name that is not org/name."""
    if not _REPO.fullmatch(repo):
        raise UserError(
            found=f"repository {repo!r}",
            expected="a name such as org/name",
            do="mend --repo",
            exit_status=2,
        )


def check_token(repo: str) -> None:
    """Raise UserError where there is no HF_TOKEN."""
    if not os.environ.get("HF_TOKEN"):
        raise UserError(
            found="no HF_TOKEN in the environment",
            expected=f"a token with write access to {repo}",
            do="export HF_TOKEN=...; it is used for the upload and written nowhere",
        )


def open_repo(repo: str, *, private: bool = True, kind: str = "dataset") -> str:
    """The address of a repository (dataset, model), made (private unless told) if there is none.

    One that is there keeps its visibility. UserError when the Hub refuses.
    """
    check_repo(repo)
    with _said_by_the_hub(repo):
        found = api().create_repo(repo, repo_type=kind, private=private, exist_ok=True)
    return str(found)


def open_branch(repo: str, branch: str, *, kind: str) -> None:
    """Make a branch where there is none; it begins at the first commit, which has no files yet."""
    with _said_by_the_hub(repo):
        first = api().list_repo_commits(repo, repo_type=kind)[-1].commit_id
        api().create_branch(repo, branch=branch, repo_type=kind, revision=first, exist_ok=True)


def upload_folder(
    folder: str, repo: str, *, message: str, kind: str = "dataset", revision: str = "main"
) -> Uploaded:
    """Upload all files of a local folder to a branch of a repository, README.md last, and verify.

    Hidden files stay here, files of the repository that the folder lacks stay there. UserError when
    the Hub refuses, and when it holds other bytes in the end.
    """
    hub, files = api(), _files(folder)
    with _said_by_the_hub(repo):
        place = {"repo_id": repo, "repo_type": kind, "revision": revision}
        everything = {**place, "folder_path": folder}
        done = hub.upload_folder(**everything, ignore_patterns=[CARD, ".*"], commit_message=message)
        if CARD in files:
            card = {"allow_patterns": [CARD], "commit_message": f"{message}: card"}
            done = hub.upload_folder(**everything, **card)
        commit = getattr(done, "oid", None) or hub.repo_info(**place).sha
        tree = hub.list_repo_tree(**{**place, "revision": commit}, recursive=True)
        there = {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}
    wrong = [name for name, path in files.items() if not _same(path, there.get(name))]
    if wrong:
        raise UserError(
            found=f"{len(wrong)} files of {repo} are not those of {folder}: {', '.join(wrong[:5])}",
            expected="the bytes that were sent",
            do="run the same command again: it sends what differs",
        )
    log.info("%s: %d files at commit %s, all verified", repo, len(files), commit)
    size = sum(path.stat().st_size for path in files.values())
    return Uploaded(commit=commit, files=len(files), size=size)


def _files(folder: str) -> dict[str, Path]:
    """Path in the repository -> file, hidden ones left out."""
    root = Path(folder)
    found = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}
    return {name: path for name, path in found.items() if not name.startswith(".")}


def _same(path: Path, entry: Any) -> bool:
    """Whether the Hub's digest of a file is that of the local one."""
    if entry is None or entry.size != path.stat().st_size:
        return False
    if entry.lfs:
        return bool(_digest(path, hashlib.sha256()) == entry.lfs.sha256)
    start = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    return bool(_digest(path, start) == entry.blob_id)


def _digest(path: Path, digest: Any) -> str:
    """The digest of what `digest` has seen already and then the file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: digest).hexdigest()


@contextlib.contextmanager
def _said_by_the_hub(repo: str) -> Iterator[None]:
    """Turn what the Hub's client says into what the user can do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        refused = status in (401, 403)
        said = error.server_message or "no reason given"
        raise UserError(
            found=f"the Hub answered {status} for {repo}: {said}",
            expected="a repository that HF_TOKEN may write to"
            if refused
            else "an answer without an error",
            do="set HF_TOKEN to a token with write access to it"
            if refused
            else "run the same command again: it goes on where it was cut off",
        ) from error
    except (errors.HTTPError, OSError, RuntimeError) as error:  # the client wraps what stopped it
        raise UserError(
            found=f"the upload to {repo} stopped: {str(error).splitlines()[0][:300]}",
            expected="the Hub, or the one that HF_ENDPOINT names, to take every file",
            do="run the same command again: it goes on where it was cut off",
        ) from error
