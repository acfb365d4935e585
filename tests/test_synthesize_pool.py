"""The pool: quotas, rounds, and replicas that die; LLMs are real HTTP servers, or vLLM."""

import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from echo_kind import echo_step, run_echo
from endpoint_server import TEST, EndpointServer
from ray_processes import ray_processes, wait_until_gone

from datagen.schema import UserError
from datagen.steps import run_steps
from datagen.store import Folder, read_table
from datagen.synthesize.llm import LLM


@pytest.fixture
def ray_session(ray_session: None) -> None:
    """The Ray of the session without processes of an earlier test: tests here count and kill."""
    wait_until_gone("Replica", "_Reader")


def llm(server: EndpointServer, name: str = "One", **fields: Any) -> LLM:
    defaults = {"model": "small", "licence": "MIT", "endpoint": server.url, "num_cpus": 0.5}
    return LLM(name=name, **(defaults | {"max_concurrency": 8} | fields))  # type: ignore[arg-type]


def written(output: Path) -> list[dict[str, Any]]:
    return read_table(Folder(f"{output}/steps/echo"), "written").to_pylist()


def asked_twice(server: EndpointServer) -> dict[str, int]:
    return {words: n for words, n in server.answered.items() if n > 1 and words != TEST}


def test_a_quota_is_of_rows_kept_and_asked_for_in_rounds(tmp_path: Path) -> None:
    with EndpointServer() as server:
        manifest = run_echo(str(tmp_path), [llm(server)], rows=40)
    (ledger,) = manifest.ledger
    assert 40 <= ledger["kept"] <= 42
    assert ledger["rows_in"] == ledger["kept"] + ledger["dropped"]["third"]
    assert manifest.stats["missing"] == {"One": {}}
    rows = written(tmp_path)
    assert [row["provenance"]["row"] for row in rows[:3]] == [f"one/echo/{i}" for i in (1, 2, 4)]
    assert rows[0]["query"] == "one/echo/1 second"
    assert rows[0]["text"] == "one/echo/1 first"


def test_a_source_without_end_is_no_condition(tmp_path: Path) -> None:
    """Of seven requests no more than four rows can be kept: it says what is missing."""
    with EndpointServer() as server:
        manifest = run_echo(str(tmp_path), [llm(server)], rows=40, end=7)
    assert manifest.ledger[0]["rows_in"] == 7
    assert manifest.stats["missing"] == {"One": {"echo": 36}}


def test_on_ray_as_in_one_process(tmp_path: Path, ray_session: None) -> None:
    rows = []
    for executor in ("local", "ray"):
        with EndpointServer() as first, EndpointServer() as second:
            llms = [llm(first), llm(second, "Two", replicas=2)]
            run_echo(str(tmp_path / executor), llms, rows=30, executor=executor)
            assert not asked_twice(first) and not asked_twice(second)
        rows.append(written(tmp_path / executor))
    assert rows[0] == rows[1]
    assert {row["provenance"]["llm"] for row in rows[0]} == {"One", "Two"}


def test_no_more_processes_than_cpus_read_what_was_answered(
    tmp_path: Path, ray_session: None
) -> None:
    """As tasks without a CPU of their own they were one process for each block that waited."""
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            seen.update(process.pid for process in ray_processes("_Reader"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        with EndpointServer() as server:
            step = echo_step([llm(server, max_concurrency=64)], rows=120, block_requests=4)
            run_steps([step], str(tmp_path), executor="ray")
    finally:
        done.set()
        thread.join()
    assert 1 <= len(seen) <= 2


def test_llms_that_do_not_fit_together_take_turns(tmp_path: Path, ray_session: None) -> None:
    """Each needs both CPUs; the second starts when the first has freed them."""
    with EndpointServer() as first, EndpointServer() as second:
        llms = [llm(first, num_cpus=2), llm(second, "Two", num_cpus=2)]
        manifest = run_echo(str(tmp_path), llms, rows=8, executor="ray")
    assert {row["source"]: row["kept"] >= 8 for row in manifest.ledger} == {
        "One/echo": True,
        "Two/echo": True,
    }


def test_replicas_that_found_no_room_are_let_go(tmp_path: Path, ray_session: None) -> None:
    """Two of five fit; the others must not load when there is nothing left to ask."""
    with EndpointServer() as server:
        run_echo(str(tmp_path), [llm(server, replicas=5, num_cpus=1)], rows=8, executor="ray")
        wait_until_gone("Replica")


def test_a_range_of_replicas_takes_the_room_that_nobody_waits_for(
    tmp_path: Path, ray_session: None
) -> None:

    def seconds(words: str) -> float:  # slow until a second replica asks, too
        return 0.05 if server.in_flight > 2 else 1.0

    with EndpointServer(seconds=seconds) as server:
        ranged = llm(server, replicas=(1, 3), max_concurrency=2, num_cpus=0.1)
        manifest = run_echo(str(tmp_path), [ranged], rows=30, executor="ray")
    assert manifest.ledger[0]["kept"] >= 30
    # Three times two at once. Counted are starts: one that was let go may have been wanted again.
    assert manifest.stats["sums"]["One"]["replicas"] > 1 and server.peak <= 6


def test_a_range_of_replicas_gives_back_what_is_idle(tmp_path: Path, ray_session: None) -> None:
    """All but one request are answered: of two replicas one has nothing to do, and goes."""
    grown, shrunk, over = (threading.Event() for _ in range(3))

    def seconds(words: str) -> float:
        return 0.0 if grown.is_set() else 0.3

    def holds(words: str) -> bool:
        return words == "one/echo/1 second" and not shrunk.is_set() and not over.is_set()

    def watch() -> None:
        end = time.monotonic() + 60
        while not over.wait(0.05) and not shrunk.is_set():
            if time.monotonic() > end:
                over.set()
            there = len(ray_processes("Replica"))
            if there == 2:
                grown.set()
            elif grown.is_set() and there == 1:
                shrunk.set()

    with EndpointServer(seconds=seconds, holds=holds) as server:
        watcher = threading.Thread(target=watch)
        watcher.start()
        ranged = llm(server, replicas=(1, 2), max_concurrency=2, num_cpus=0.5)
        try:
            manifest = run_echo(str(tmp_path), [ranged], rows=20, executor="ray")
        finally:
            over.set()
            watcher.join()
    assert grown.is_set() and shrunk.is_set()
    assert manifest.ledger[0]["kept"] >= 20
    assert not asked_twice(server)


def test_a_range_of_replicas_does_not_take_the_room_of_an_llm_that_waits(
    tmp_path: Path, ray_session: None
) -> None:
    """Two of the first fill the cluster; the other is there first."""
    with EndpointServer(seconds=lambda words: 0.1) as first, EndpointServer() as second:
        llms = [
            llm(first, replicas=(1, 2), num_cpus=1, max_concurrency=2),
            llm(second, "Two", num_cpus=1),
        ]
        manifest = run_echo(str(tmp_path), llms, rows=12, executor="ray")
    assert manifest.stats["missing"] == {"One": {}, "Two": {}}
    assert manifest.stats["sums"]["Two"]["replicas"] == 1


@pytest.mark.parametrize("replicas", [0, (0, 2), (3, 2)])
def test_replicas_that_cannot_be(replicas: Any) -> None:
    with pytest.raises(UserError, match="replicas"):
        LLM(name="One", model="m", licence="MIT", replicas=replicas)


def test_what_was_answered_is_never_asked_again(tmp_path: Path) -> None:
    """Another output, another quota, the same responses: only what is new is asked for."""
    with EndpointServer() as server:
        run_echo(str(tmp_path), [llm(server)], rows=20)
        before = sum(server.answered.values())
        commits = tmp_path / "steps" / "echo"
        for name in ("manifest.json", "started.json"):
            (commits / name).unlink(missing_ok=True)
        manifest = run_echo(str(tmp_path), [llm(server)], rows=26)
        assert not asked_twice(server)
        assert before < sum(server.answered.values()) <= before + 2 * 12 + 1  # the test request
    assert manifest.ledger[0]["kept"] >= 26
    sums = manifest.stats["sums"]["One"]
    assert sums["reused"] > sums["asked"]


def test_a_replica_that_is_killed_costs_nothing_that_was_stored(
    tmp_path: Path, ray_session: None
) -> None:
    """kill -9 to the actor's process while its blocks are half answered."""
    with EndpointServer(seconds=lambda words: 0.2) as server:
        step = echo_step([llm(server, max_concurrency=4)], rows=40, block_requests=8)
        done = threading.Event()
        killed: list[int] = []

        def kill() -> None:
            while not done.is_set() and not killed:
                if sum(server.answered.values()) >= 30:
                    for process in ray_processes("Replica"):
                        process.kill()
                        killed.append(process.pid)
                time.sleep(0.05)

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            manifest = run_steps([step], str(tmp_path), executor="ray")["echo"]
        finally:
            done.set()
            thread.join()
    assert killed
    assert manifest.ledger[0]["kept"] >= 40
    names = [row["provenance"]["row"] for row in written(tmp_path)]
    assert len(names) == len(set(names)) == manifest.ledger[0]["kept"]
    # Asked twice: at most what was in flight or not yet on disk, two seconds at 20 a second.
    assert sum(n - 1 for n in asked_twice(server).values()) <= 4 + 2 * 20 + 4


def test_an_llm_whose_replicas_keep_dying_fails_alone(tmp_path: Path, ray_session: None) -> None:
    """The other one finishes; then the error says which failed, and what to do."""
    with EndpointServer() as server:
        with pytest.raises(UserError, match="Dies: 4 replicas died") as raised:
            run_echo(str(tmp_path), [llm(server), llm(server, "Dies")], rows=8, executor="ray")
        assert "run the same command again" in str(raised.value)
        assert not Path(tmp_path / "steps/echo/manifest.json").exists()
        commits = [json.loads(p.read_text()) for p in tmp_path.glob("steps/echo/commits/*.json")]
        assert sum(record["ledger"][0]["kept"] for record in commits) >= 8


DRIVER = textwrap.dedent(
    """
    import sys
    sys.path.insert(0, sys.argv[3])
    from echo_kind import run_echo
    from datagen.synthesize.llm import LLM

    if __name__ == "__main__":
        one = LLM(name="One", model="small", licence="MIT", endpoint=sys.argv[2], max_concurrency=4)
        run_echo(sys.argv[1], [one], rows=40)
    """
)


def test_a_killed_driver_asks_for_the_rest_only(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    with EndpointServer(seconds=lambda words: 0.1) as server:
        command = [sys.executable, str(script), str(tmp_path / "out"), server.url]
        command.append(str(Path(__file__).parent))
        with subprocess.Popen(command) as driver:
            while sum(server.answered.values()) < 60:
                assert driver.poll() is None
                time.sleep(0.05)
            driver.send_signal(signal.SIGKILL)
        before = sum(server.answered.values())
        subprocess.run(command, check=True)
        again = sum(n - 1 for n in asked_twice(server).values())
    assert before >= 60
    assert again <= 4 + 2 * 40 + 4  # two seconds at forty a second
    rows = written(tmp_path / "out")
    names = [row["provenance"]["row"] for row in rows]
    assert 40 <= len(names) == len(set(names))
    blocks = Path(tmp_path / "out/steps/echo/responses/one/echo").glob("*/*")
    assert {path.name for path in blocks} == {"responses.arrow"}
    assert json.loads((tmp_path / "out/steps/echo/manifest.json").read_text())["ledger"]
