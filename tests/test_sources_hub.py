"""The Hub source against a local server that speaks the Hub's protocol, with the real client."""

import contextlib
import gzip
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datagen.ingest import ingest
from datagen.schema import UserError
from datagen.sources import ROWS_PER_UNIT, hub
from datagen.sources.hub import HubSource
from datagen.steps import run_steps
from datagen.store import Folder, read_table

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = "hf_thisIsASecret"
COLUMNS = {"query": "question", "text": "answer"}
ROWS = ROWS_PER_UNIT + 10


def _parquet(count: int) -> bytes:
    sink = io.BytesIO()
    columns = {
        "question": [f"question {i}" for i in range(count)],
        "answer": [f"answer {i}" for i in range(count)],
        "unused": list(range(count)),
    }
    pq.write_table(pa.table(columns), sink, row_group_size=1000)
    return sink.getvalue()


@dataclass
class Hub:
    """What the server holds and what it was asked."""

    files: dict[str, bytes]
    endpoint: str = ""
    ranges: int = 0
    authorizations: set[str | None] = field(default_factory=set)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(body)

    def _answer(self, body: bytes = b"") -> None:
        hub_state = self.server.hub
        hub_state.authorizations.add(self.headers.get("Authorization"))
        path = unquote(urlsplit(self.path).path)
        api = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(/.*)?", path)
        file = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = api or file
        if match is None:
            return self._send(404, b"{}", {})
        repo = match.group(1)
        if repo not in ("org/qa", "org/gated"):
            return self._send(401, b'{"error":"no"}', {"X-Error-Code": "RepoNotFound"})
        if api:
            return self._api(repo, api.group(2) or "", body)
        if repo == "org/gated":
            return self._send(403, b'{"error":"gated"}', {"X-Error-Code": "GatedRepo"})
        return self._file(file.group(3) if file else "")

    def _api(self, repo: str, rest: str, body: bytes) -> None:
        names = sorted(self.server.hub.files)
        if rest == "/auth-check" and repo == "org/gated":
            return self._send(403, b'{"error":"gated"}', {"X-Error-Code": "GatedRepo"})
        revision = re.match(r"/(?:revision|paths-info|tree)/([^/]+)", rest)
        if revision and revision.group(1) not in ("main", COMMIT):
            return self._send(404, b'{"error":"no"}', {"X-Error-Code": "RevisionNotFound"})
        if rest.startswith("/paths-info/"):
            asked = _asked_paths(body)
            return self._json([self._entry(name) for name in asked if name in names])
        if rest.startswith("/tree/"):
            return self._json([self._entry(name) for name in names])
        siblings = [{"rfilename": name} for name in names]
        return self._json({"id": repo, "sha": COMMIT, "siblings": siblings})

    def _entry(self, name: str) -> dict:
        size = len(self.server.hub.files[name])
        return {"type": "file", "path": name, "size": size, "oid": "f" * 40}

    def _file(self, name: str) -> None:
        hub_state = self.server.hub
        if name not in hub_state.files:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        data, status = hub_state.files[name], 200
        headers = {"ETag": f'"{len(data):040x}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked.group(1)), min(int(asked.group(2) or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
            hub_state.ranges += 1
        return self._send(status, data, headers)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(data)


def _asked_paths(body: bytes) -> list[str]:
    with contextlib.suppress(ValueError):
        paths = json.loads(body)["paths"]
        return paths if isinstance(paths, list) else [paths]
    return re.findall(r"paths=([^&]+)", unquote(body.decode()))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub


@pytest.fixture
def local_hub(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[Hub]:
    """A Hub on the loopback, with one open and one gated dataset."""
    lines = b'{"question": "q", "answer": "a"}\n{broken\n'
    state = Hub(
        files={
            "README.md": b"# qa",
            "data/train-00000-of-00001.parquet": _parquet(ROWS),
            "data/test-00000-of-00001.parquet": _parquet(3),
            "german/train.jsonl.gz": gzip.compress(lines, mtime=0),
        }
    )
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = state
    state.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", state.endpoint)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.resolve_commit.cache_clear()
    yield state
    server.shutdown()
    server.server_close()


def _source(**options) -> HubSource:
    return HubSource(
        **{"name": "qa", "repo": "org/qa", "task": "retrieval", "columns": COLUMNS, **options}
    )


def test_a_dataset_is_read_at_one_commit_by_ranges(local_hub: Hub, tmp_path) -> None:
    source = _source(language="eng_Latn")
    units = source.plan()
    assert [unit["name"] for unit in units] == ["data/train-00000-of-00001.parquet"] * 2
    assert {unit["commit"] for unit in units} == {COMMIT}
    manifests = run_steps([ingest(source)], str(tmp_path / "out"), executor="local")
    pairs = read_table(Folder(str(tmp_path / "out" / "steps" / "ingest")), "pairs")
    assert pairs["query"].to_pylist() == [f"question {i}" for i in range(ROWS)]
    assert (
        pairs["provenance"].to_pylist()[-1]["row"]
        == f"data/train-00000-of-00001.parquet#{ROWS - 1}"
    )
    assert manifests["ingest"].config["sources"][0]["commit"] == COMMIT
    assert local_hub.ranges > 0


def test_the_token_reaches_the_hub_and_nothing_else(local_hub: Hub, tmp_path, caplog) -> None:
    run_steps([ingest(_source(split="test"))], str(tmp_path / "out"), executor="local")
    assert local_hub.authorizations == {f"Bearer {SECRET}"}
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert SECRET.encode() not in written
    assert SECRET not in caplog.text


def test_without_a_token_none_is_sent(local_hub: Hub, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    _source(split="test").plan()
    assert local_hub.authorizations == {None}


def test_other_formats_are_fetched_whole(local_hub: Hub) -> None:
    unit, *rest = _source(subset="german").plan()
    assert rest == []
    rows = hub.read(json.loads(json.dumps(unit)))
    assert [(p["query"], p["provenance"]["row"]) for p in rows.records()] == [
        ("q", "german/train.jsonl.gz:1")
    ]
    assert [r["row"] for r in rows.quarantined] == ["german/train.jsonl.gz:2"]


@pytest.mark.parametrize(
    ("options", "found", "do"),
    [
        ({"repo": "org/gated"}, "gated", "HF_TOKEN"),
        ({"repo": "org/gated", "revision": COMMIT}, "gated", "HF_TOKEN"),
        ({"repo": "org/absent"}, "does not exist", "HF_TOKEN"),
        ({"repo": "org/absent", "revision": COMMIT}, "does not exist", "HF_TOKEN"),
        ({"revision": "v9"}, "v9", "revision"),
        ({"repo": "a/b/c"}, "a/b/c", "name"),
        ({"split": "validation"}, "validation", "split"),
        (
            {"columns": {"query": "question", "text": "reply"}},
            "question, answer, unused",
            "column map",
        ),
    ],
)
def test_what_cannot_be_read_is_said_within_seconds(
    local_hub: Hub, options: dict, found: str, do: str
) -> None:
    start = time.monotonic()
    with pytest.raises(UserError) as raised:
        _source(**options).plan()
    assert found in raised.value.found
    assert do in raised.value.do
    assert SECRET not in str(raised.value)
    assert time.monotonic() - start < 5


def test_an_unreachable_hub_is_said_within_seconds(monkeypatch) -> None:
    hub.resolve_commit.cache_clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(UserError, match="HF_ENDPOINT"):
        _source().config()
    assert time.monotonic() - start < 5


def test_a_pinned_commit_needs_no_network_to_build_the_step(monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    step = ingest(_source(revision=COMMIT))
    assert step.config["sources"][0]["commit"] == COMMIT
