"""A build with a real LLM is killed and run again: nothing is paid for twice, nothing is lost."""

import hashlib
import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from datagen.store import Folder, read_manifest, read_table, verify

PATIENCE_S = 300
TOO_LONG = "\U0001f9ed" * 2_000  # few characters, thousands of tokens

DRIVER = textwrap.dedent(
    """
    import logging, sys
    import pyarrow as pa
    from datagen.schema import DOCUMENT, document_id
    from datagen.steps import Step, run_steps
    from datagen.synthesize import LLM, synthesize

    TEXT = "Lighthouse number {} stands on a cliff; its keeper writes the weather into a book."

    def work(context):
        texts = [TEXT.format(i) for i in range(7)] + [sys.argv[3]]
        rows = [
            {"doc_id": document_id(None, text), "cluster": document_id(None, text), "text": text,
             "title": None, "source": "keeper", "origin": "public", "task": "retrieval",
             "language": "eng", "script": "Latn"}
            for text in texts
        ]
        table = pa.Table.from_pylist(rows, schema=DOCUMENT)
        context.write("documents", table, DOCUMENT, rows_per_shard=10)

    if __name__ == "__main__":
        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
        documents = Step(name="documents", version=1, config={}, inputs={}, work=work)
        llm = LLM(name="SmolLM2", model="smollm2-135m-instruct", licence="Apache-2.0")
        step = synthesize(
            documents, tasks=None, llms=[llm], cache=sys.argv[2], rows={"retrieval": 12},
            block_requests=4,
        )
        run_steps([documents, step], sys.argv[1], executor="local")
    """
)


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every shard and commit record in a step's folder."""
    files = [*folder.glob("*.arrow"), *folder.glob("commits/*.json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_until_first_commit_and_kill(command: list[str], commits: Path) -> None:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        end = time.monotonic() + PATIENCE_S
        while not list(commits.glob("*.json")):
            assert driver.poll() is None, "the driver ended before its first commit"
            assert time.monotonic() < end, f"no commit within {PATIENCE_S} s"
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_build_asks_for_the_rest_only(tmp_path: Path, model_cache: str) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    command = [sys.executable, str(script), str(tmp_path / "out"), model_cache, TOO_LONG]
    place = tmp_path / "out" / "steps" / "synthesize"

    run_until_first_commit_and_kill(command, place / "commits")
    assert not (place / "manifest.json").exists()
    records = [json.loads(path.read_text()) for path in (place / "commits").glob("*.json")]
    vouched = {shard["name"] for record in records for shard in record["shards"]}
    before = {name: digest for name, digest in digests(place).items() if name in vouched}
    assert before

    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "synthesize: resuming, " in again.stdout
    after = digests(place)
    assert {name: after[name] for name in before} == before

    folder = Folder(str(place))
    assert verify(folder) == []
    asked = read_table(folder, "asked").to_pylist()
    names = [row["request"] for row in asked]
    assert names == [f"smollm2/retrieval/{i}" for i in range(len(names))]
    pairs = read_table(folder, "pairs").to_pylist()
    gone = [row for t in ("rejected", "unselected") for row in read_rows(folder, t)]
    kept = [pair["provenance"]["row"] for pair in pairs]
    assert sorted(kept + [row["row"] for row in gone]) == sorted(names)
    assert len(pairs) == 12

    # One prompt was too long for the LLM: it cost its own rows and no other.
    too_long = [row for row in gone if row["reason"] == "prompt_too_long"]
    assert len(too_long) >= 1
    (table,) = read_manifest(folder).stats["llms"]
    assert (table["requested"], table["kept"]) == (len(names), len(pairs))
    assert sum(table["reasons"].values()) == len(gone)
    assert table["output_tokens"] > 0


def read_rows(folder: Folder, table: str) -> list[dict]:
    """Rows of a table that may have none."""
    return read_table(folder, table).to_pylist() if read_manifest(folder).table(table) else []
