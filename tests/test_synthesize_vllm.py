"""Both packaged LLMs in vLLM on Ray, in turns, with a kill -9 to an engine's process on the way."""

import contextlib
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from ray_processes import ray_processes, wait_until_gone
from test_synthesize_step import documents_step

from datagen.steps import run_steps
from datagen.store import Folder, read_table, verify
from datagen.synthesize import LLM, synthesize
from datagen.synthesize.responses import read_responses

ROWS = 12


def stored(output: Path) -> dict[str, str]:
    """Texts of all stored responses by key."""
    found = {}
    for block in sorted(output.glob("responses/*/*/*")):
        for key, response in read_responses(Folder(str(block))).items():
            found[key] = response.text
    return found


@pytest.mark.slow
def test_an_engine_that_is_killed_is_made_good(
    tmp_path: Path, ray_session: None, model_cache: str
) -> None:
    """Each LLM wants both CPUs, so they take turns; the first that answers is killed."""
    llms = [
        LLM(name="SmolLM2", model="smollm2-135m-instruct", licence="Apache-2.0", num_cpus=2),
        LLM(name="Gemma", model="gemma3-270m", licence="Gemma", chat=False, num_cpus=2),
    ]
    documents = documents_step()
    step = synthesize(
        documents,
        tasks=None,
        llms=llms,
        cache=model_cache,
        rows={"retrieval": ROWS},
        block_requests=6,
    )
    wait_until_gone("Replica")
    done, killed, before = threading.Event(), [], {}

    def kill() -> None:
        while not done.is_set() and not killed:
            with contextlib.suppress(OSError):  # a segment that was just put together with others
                before.update(stored(tmp_path))
            if len(before) >= 4:
                for process in ray_processes("Replica"):
                    process.kill()
                    killed.append(process.pid)
            time.sleep(0.1)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        manifest = run_steps([documents, step], str(tmp_path), executor="ray")["synthesize"]
    finally:
        done.set()
        thread.join()
    assert killed and before
    after = stored(tmp_path)
    assert {key: after[key] for key in before} == before

    folder = Folder(f"{tmp_path}/steps/synthesize")
    assert verify(folder) == []
    pairs = read_table(folder, "pairs").to_pylist()
    assert Counter(row["provenance"]["llm"] for row in pairs) == {"SmolLM2": 6, "Gemma": 6}
    asked = read_table(folder, "asked").to_pylist()
    names = [row["request"] for row in asked]
    assert len(names) == len(set(names)) == len(after)
    for record in manifest.stats["llms"]:
        assert record["requested"] == record["kept"] + sum(record["reasons"].values())
    # All that the schema held parses: what is rejected is a rule of ours, or was cut.
    assert not {row["reason"] for row in asked} & {"invalid_json", "engine_error"}
