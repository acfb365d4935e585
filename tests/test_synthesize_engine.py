"""Synthesis with a real LLM in vLLM: answers, resumption after kill -9, and the file command."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from synthesis_run import UNIT_REQUESTS, texts

from datagen.store import Folder, read_manifest, read_table, verify

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
LIMIT_S = 400  # for a start of vLLM on a busy machine


def run_process(output: Path, cache: str, executor: str, units: int) -> subprocess.Popen[str]:
    arguments = [str(HERE / "synthesis_run.py"), str(output), cache, executor, str(units)]
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[dict, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err[-3_000:]
    return json.loads(out.splitlines()[-1]), err


def kill_after_commits(process: subprocess.Popen[str], folder: Path, commits: int) -> None:
    """kill -9 as soon as so many units are committed, and see all that could write gone."""
    limit = time.monotonic() + LIMIT_S
    while len(list(folder.glob("commits/*.json"))) < commits:
        assert process.poll() is None, process.communicate()[1][-3_000:]
        assert time.monotonic() < limit, "no unit was committed"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
    # Ray's two agents only watch and leave later; its workers must be gone before the next run.
    children = psutil.Process(process.pid).children(recursive=True)
    writers = [child for child in children if "Agent" not in child.name()]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(writers, timeout=60)
    assert not alive


def committed_shards(folder: Path) -> dict[str, tuple[str, int]]:
    """sha256 and inode of every shard that a commit record vouches for."""
    found = {}
    for record in folder.glob("commits/*.json"):
        for shard in json.loads(record.read_text())["shards"]:
            path = folder / shard["name"]
            found[shard["name"]] = (
                hashlib.sha256(path.read_bytes()).hexdigest(),
                os.stat(path).st_ino,
            )
    return found


def test_a_killed_run_resumes_and_pays_for_no_unit_twice(tmp_path, model_cache) -> None:
    units = 6
    folder = tmp_path / "steps" / "synthesize"
    kill_after_commits(run_process(tmp_path, model_cache, "ray", units), folder, 1)
    before = committed_shards(folder)
    commits = len(list(folder.glob("commits/*.json")))
    assert 1 <= commits < units

    _, log = finish(run_process(tmp_path, model_cache, "ray", units))

    assert f"resuming, {commits} of {units} units are committed" in log
    for name, (digest, inode) in before.items():
        path = folder / name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
        assert os.stat(path).st_ino == inode, "a committed shard was written again"
    done = Folder(str(folder))
    assert verify(done) == []
    asked = Counter(row["provenance"]["row"] for row in read_table(done, "pairs").to_pylist())
    if read_manifest(done).table("rejected"):
        asked.update(read_table(done, "rejected")["row"].to_pylist())
    assert asked == Counter({f"smollm2/retrieval/{i}": 1 for i in range(units * UNIT_REQUESTS)})


def test_rows_keep_their_documents_and_facts_add_up(tmp_path, model_cache) -> None:
    printed, _ = finish(run_process(tmp_path, model_cache, "local", 3))
    (record,) = printed["llms"]
    pairs = read_table(Folder(str(tmp_path / "steps" / "synthesize")), "pairs").to_pylist()
    assert printed["threads"] == "1"
    assert record["requests"] == 3 * UNIT_REQUESTS
    assert record["valid"] == len(pairs) >= record["requests"] / 2
    assert record["requests"] == record["valid"] + sum(record["rejected"].values())
    assert record["tokens_per_s"] > 0
    assert {pair["text"] for pair in pairs} <= set(texts(24))
    rivers = [next(word for word in pair["text"].split()[1:2]) for pair in pairs]
    named = sum(
        river in pair["query"] or "ship" in pair["query"] or "harbour" in pair["query"]
        for river, pair in zip(rivers, pairs, strict=True)
    )
    assert named >= len(pairs) / 2, [pair["query"] for pair in pairs]


def test_a_request_that_cannot_be_answered_costs_its_own_row_only(model_cache) -> None:
    code = """
        import json, sys
        from datagen.synthesize.engine import Engine, Request
        from datagen.synthesize.llm import LLM
        from datagen.synthesize.parse import query_schema
        from datagen.synthesize.prompts import load_prompt

        llm = LLM(name="S", model="smollm2-135m-instruct", licence="", max_tokens=32)
        engine = Engine(llm, cache=sys.argv[1])

        def request(text, schema):
            values = {"text": text, "type": "question", "words": "4 to 7 words",
                      "difficulty": "for a student", "language": "English"}
            return Request(prompt=load_prompt("doc2query"), values=values, schema=schema)

        good, bad = query_schema(code=False), {"type": "no such type"}
        asked = [("The Nile ends in Egypt.", good), ("word " * 3000, good),
                 ("The Nile ends in Egypt.", bad), ("The Rhine ends in Holland.", good)]
        found = engine.generate([request(*one) for one in asked])
        print(json.dumps([[answer.problem, answer.text, answer.finished] for answer in found]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), model_cache],
        capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
    first, long, bad, last = json.loads(done.stdout.splitlines()[-1])
    assert (long[0], bad[0]) == ("prompt_too_long", "engine_error")
    for problem, text, finished in (first, last):
        assert (problem, finished) == ("", True)
        assert set(json.loads(text)) == {"query"}


def test_the_command_writes_rows_rejected_rows_and_a_table_per_llm(tmp_path, model_cache) -> None:
    lines = [{"text": text, "title": "Rivers", "id": f"r{i}"} for i, text in enumerate(texts(12))]
    lines += [{"text": "short", "id": "x"}, {"text": texts(1)[0], "title": "Rivers", "id": "y"}]
    source = tmp_path / "documents.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "datagen.cli", "synthesize", "--documents", str(source)]
    command += ["--models", "smollm2-135m-instruct", "--cache", model_cache]
    command += ["--output", str(tmp_path / "out"), "--per-model", "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3_000:]

    rows = pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    for row in rows:
        assert row["text"] == lines[row["document_row"]]["text"]
        assert row["id"] == lines[row["document_row"]]["id"]
        assert (row["llm"], row["llm_licence"]) == ("smollm2-135m-instruct", "Apache-2.0")
        assert row["prompt"].startswith("doc2query@")
        assert json.loads(row["sampling"])["seed"] == row["seed"] == 0
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    reasons = Counter(row["reason"] for row in rejected)
    assert (reasons.pop("document_too_short"), reasons.pop("duplicate_document")) == (1, 1)
    (record,) = json.loads((tmp_path / "out" / "models.json").read_text())
    assert record["requests"] == 10 == len(rows) + reasons.total()
    assert record["valid"] == len(rows) >= 5
