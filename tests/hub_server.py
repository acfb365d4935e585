"""A Hub on the loopback that takes uploads: repositories, commits, large files, reading by ranges.

It speaks what the real client says when the Xet protocol is off: preupload, LFS batch and verify,
commits of NDJSON lines, trees and files. Faults can be put in: `refuse` names large files whose
upload is cut off, `tamper` files that the server stores with another last byte.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_thisIsASecret"
LARGE = 64  # bytes from which a binary file is a large one


@dataclass
class Repository:
    """One dataset or model: the files of a branch, and the commits that brought them."""

    private: bool
    kind: str = "datasets"
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    commits: list[list[str]] = field(default_factory=list)  # the paths of each
    branches: dict[str, "Repository"] = field(default_factory=dict)  # but main
    number: int = 0  # of the branch

    @property
    def head(self) -> str:
        return f"{self.number:08x}{len(self.commits):032x}"

    def at(self, revision: str) -> "Repository":
        """The branch of this name or commit."""
        named = {name: r for r in self.branches.values() for name in (r.head,)} | self.branches
        return named.get(revision, self)


@dataclass
class HubState:
    """What the server holds, what it was asked, and the faults it makes."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # large files by sha256
    uploads: list[str] = field(default_factory=list)  # sha256 of each that was sent, in order
    authorizations: set[str | None] = field(default_factory=set)
    refuse: int = 0  # uploads of large files to cut off, from the next one on
    tamper: set[str] = field(default_factory=set)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def do_HEAD(self) -> None:
        self._route(b"")

    def do_GET(self) -> None:
        self._route(b"")

    def do_POST(self) -> None:
        self._route(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def do_PUT(self) -> None:
        hub, oid = self.server.hub, self.path.rsplit("/", 1)[1]
        data = self.rfile.read(int(self.headers["Content-Length"]))
        hub.uploads.append(oid)
        if hub.refuse:
            hub.refuse -= 1
            return self._send(403, b"no")
        assert hashlib.sha256(data).hexdigest() == oid
        hub.objects[oid] = data
        return self._send(200, b"")

    def _route(self, body: bytes) -> None:
        hub = self.server.hub
        hub.authorizations.add(self.headers.get("Authorization"))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/whoami-v2":
            return self._json({"name": "org", "orgs": [], "auth": {}})
        for pattern, answer in (
            (r"/api/(?:datasets|models)/([^/]+/[^/]+)(?:/(.*))?", self._api),
            (r"(?:/datasets)?/([^/]+/[^/]+)\.git/info/lfs/(.*)", self._large),
            (r"(?:/datasets)?/([^/]+/[^/]+)/resolve/(.+)", self._file),
        ):
            if match := re.fullmatch(pattern, path):
                repository = hub.repositories.get(match[1])
                hidden = repository is None or (
                    repository.private and not self.headers.get("Authorization")
                )
                if hidden:
                    return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
                return answer(match[1], repository, match[2] or "", body)
        return self._send(404, b"{}")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'org'}/{asked['name'].rsplit('/')[-1]}"
        repositories = self.server.hub.repositories
        if name in repositories:
            return self._send(409, json.dumps({"error": "exists", "url": self._url(name)}).encode())
        if not self.headers.get("Authorization"):
            return self._send(401, b'{"error": "Invalid username or password."}')
        kind = f"{asked.get('type') or 'model'}s"
        private = asked.get("visibility") == "private"
        repositories[name] = Repository(private=private, kind=kind)
        return self._json({"url": self._url(name), "name": name})

    def _url(self, name: str) -> str:
        folder = "datasets/" if self.server.hub.repositories[name].kind == "datasets" else ""
        return f"{self.server.hub.endpoint}/{folder}{name}"

    def _api(self, name: str, repository: Repository, rest: str, body: bytes) -> None:
        if rest.startswith("branch/"):
            return self._branch(repository, rest.removeprefix("branch/"), json.loads(body))
        if rest.startswith("commits/"):
            first = {"id": "0" * 40, "authors": [], "date": "2026-01-01T00:00:00.000Z"}
            return self._json([{**first, "title": "initial commit", "message": ""}])
        repository = repository.at(rest.split("/")[1] if "/" in rest else "main")
        if rest.startswith("preupload/"):
            files = json.loads(body)["files"]
            return self._json({"files": [self._mode(repository, file) for file in files]})
        if rest.startswith("commit/"):
            return self._commit(name, repository, body)
        if rest.startswith("paths-info/"):
            form = parse_qs(body.decode()) if not body.startswith(b"{") else json.loads(body)
            paths = form["paths"] if isinstance(form["paths"], list) else [form["paths"]]
            some = [path for path in paths if path in repository.files]
            return self._json([_entry(repository, path) for path in some])
        if rest.startswith("tree/"):
            inside = rest.split("/", 2)[2] + "/" if rest.count("/") > 1 else ""
            recursive = parse_qs(urlsplit(self.path).query).get("recursive") == ["true"]
            return self._json(_tree(repository, inside, recursive=recursive))
        siblings = [{"rfilename": path} for path in sorted(repository.files)]
        found = {"id": name, "sha": repository.head, "siblings": siblings, "tags": []}
        return self._json({**found, "private": repository.private})

    def _branch(self, repository: Repository, name: str, asked: dict[str, Any]) -> None:
        if name in repository.branches:
            return self._send(409, b'{"error": "Reference already exists"}')
        assert asked["startingPoint"] == "0" * 40
        number = len(repository.branches) + 1
        repository.branches[name] = Repository(private=repository.private, number=number)
        return self._json({})

    def _mode(self, repository: Repository, file: dict[str, Any]) -> dict[str, Any]:
        text = b"\0" not in base64.b64decode(file["sample"])
        large = not text and file["size"] >= LARGE
        known = repository.files.get(file["path"])
        entry = {} if known is None else _entry(repository, file["path"])
        oid = entry.get("lfs", entry).get("oid")  # of a large file the client compares the sha256
        mode = {"uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        return {"path": file["path"], **mode, **({"oid": oid} if oid else {})}

    def _large(self, name: str, repository: Repository, rest: str, body: bytes) -> None:
        if rest == "verify":
            return self._json({})
        asked, hub = json.loads(body)["objects"], self.server.hub
        objects = []
        for item in asked:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in hub.objects:
                base = f"{self._url(name)}.git/info/lfs"
                upload = {"href": f"{hub.endpoint}/put/{item['oid']}", "header": {}}
                verify = {"href": f"{base}/verify", "header": {}}
                entry["actions"] = {"upload": upload, "verify": verify}
            objects.append(entry)
        return self._json({"objects": objects, "transfer": "basic"})

    def _commit(self, name: str, repository: Repository, body: bytes) -> None:
        paths, hub = [], self.server.hub
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                repository.files[value["path"]] = hub.objects[value["oid"]]
                repository.large.add(value["path"])
            elif operation["key"] == "deletedFile":
                repository.files.pop(value["path"], None)
            if operation["key"] != "header":
                paths.append(value["path"])
                if value["path"] in hub.tamper:
                    data = repository.files[value["path"]]
                    repository.files[value["path"]] = data[:-1] + bytes([data[-1] ^ 1])
        repository.commits.append(paths)
        url = f"{self._url(name)}/commit/{repository.head}"
        return self._json({"success": True, "commitOid": repository.head, "commitUrl": url})

    def _file(self, _: str, repository: Repository, place: str, __: bytes) -> None:
        revision, path = place.split("/", 1)
        repository = repository.at(revision)
        if path not in repository.files:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        data, status = repository.files[path], 200
        oid = hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{oid}"', "X-Repo-Commit": repository.head, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        return self._send(status, data, headers)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(data)


def _tree(repository: Repository, inside: str, *, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders below `inside`, at any depth or only the next."""
    below = [path for path in sorted(repository.files) if path.startswith(inside)]
    folders = {parent.as_posix() for path in below for parent in PurePosixPath(path).parents}
    folders = {path for path in folders if path != "." and path.startswith(inside)}
    entries = [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)]
    entries += [_entry(repository, path) for path in below]
    return [e for e in entries if recursive or "/" not in e["path"].removeprefix(inside)]


def _entry(repository: Repository, path: str) -> dict[str, Any]:
    data = repository.files[path]
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob}
    if path in repository.large:
        oid = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 134}
    return entry


class Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubState


@pytest.fixture
def upload_hub(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[HubState]:
    """The Hub, with the client's environment pointing at it."""
    server = Server(("127.0.0.1", 0), Handler)
    server.hub = HubState(endpoint=f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    yield server.hub
    server.shutdown()
    server.server_close()
