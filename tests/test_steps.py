import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.schema import UserError
from datagen.steps import (
    LedgerRow,
    Progress,
    Step,
    UnitResult,
    Workers,
    check_ledger,
    drifted_keys,
    merge_ledger,
    run_steps,
)
from datagen.store import Folder, read_manifest, read_table, verify

NUMBERS = pa.schema([pa.field("n", pa.int64(), nullable=False)])


def count_to(unit) -> UnitResult:
    """Keeps the even numbers below unit["below"]; a unit of 13 is a mistake of the user's."""
    if unit["below"] == 13:
        raise UserError(found="13", expected="another number", do="choose again")
    if unit["below"] == 14:
        raise ZeroDivisionError("a bug")
    if log := unit.get("log"):
        with open(log, "a") as file:
            file.write(f"{unit['below']}\n")
    kept = list(range(0, unit["below"], 2))
    return UnitResult(
        tables={"numbers": pa.table({"n": kept}, schema=NUMBERS)},
        ledger=[
            LedgerRow(
                source="naturals", rows_in=unit["below"], kept=len(kept),
                dropped={"odd": unit["below"] - len(kept)}, unit="numbers",
            )
        ],
        stats={"units": 1},
    )  # fmt: skip


class CountTo:
    """The same as an actor with something to load."""

    def __init__(self, offset: int):
        self.offset = offset

    def __call__(self, unit) -> UnitResult:
        return count_to({**unit, "below": unit["below"] + self.offset})


def counting(units, *, name="count", actors=None, config=None, log=None) -> Step:
    def work(context):
        context.map_units(
            [{"below": n, "log": log} for n in units],
            CountTo if actors else count_to,
            schemas={"numbers": NUMBERS},
            workers=Workers(actors=actors),
            constructor={"offset": 0} if actors else None,
        )

    return Step(name=name, version=1, config=config or {"units": units}, inputs={}, work=work)


def doubling(numbers: Step) -> Step:
    def work(context):
        rows = read_table(context.inputs["numbers"], "numbers")
        doubled = pa.table({"n": [2 * n for n in rows["n"].to_pylist()]}, schema=NUMBERS)
        context.write("doubled", doubled, NUMBERS, rows_per_shard=4)
        context.ledger.append(LedgerRow(source="naturals", rows_in=len(rows), kept=len(rows)))

    return Step(name="double", version=1, config={}, inputs={"numbers": numbers}, work=work)


def test_a_step_leaves_shards_a_ledger_and_a_manifest(tmp_path):
    first = counting([4, 6])
    manifests = run_steps([first, doubling(first)], str(tmp_path), executor="local")
    folder = Folder(f"{tmp_path}/steps/double")
    assert read_table(folder, "doubled")["n"].to_pylist() == [0, 4, 0, 4, 8]
    assert folder.names() == ["doubled-00000.arrow", "doubled-00001.arrow", "manifest.json"]
    (row,) = manifests["count"].ledger
    assert (row["rows_in"], row["kept"], row["dropped"]) == (10, 5, {"odd": 5})
    assert manifests["count"].stats["sums"] == {"units": 2}
    assert verify(folder) == []


def test_running_again_does_nothing(tmp_path, caplog):
    log = str(tmp_path / "log")
    for _ in range(2):
        with caplog.at_level(logging.INFO, logger="embedmix"):
            run_steps([counting([4, 6], log=log)], str(tmp_path), executor="local")
    assert Path(log).read_text().split() == ["4", "6"]
    assert "count: up to date (numbers 5; dropped: odd 5)" in caplog.text


def test_a_drifted_configuration_is_named(tmp_path):
    run_steps([counting([4])], str(tmp_path), executor="local")
    with pytest.raises(UserError, match=r"config.units was \[4\], is now \[5\]"):
        run_steps([counting([5])], str(tmp_path), executor="local")


def test_a_changed_input_is_named(tmp_path):
    first = counting([4])
    run_steps([first, doubling(first)], str(tmp_path), executor="local")
    other = counting([6], name="other")
    with pytest.raises(UserError, match="inputs.numbers was"):
        run_steps([other, doubling(other)], str(tmp_path), executor="local")


def test_a_failed_step_resumes_at_the_last_committed_unit(tmp_path):
    log = str(tmp_path / "log")
    config = {"same": True}
    with pytest.raises(ZeroDivisionError):
        run_steps(
            [counting([4, 6, 14, 8], config=config, log=log)], str(tmp_path), executor="local"
        )
    done = run_steps(
        [counting([4, 6, 2, 8], config=config, log=log)], str(tmp_path), executor="local"
    )
    assert Path(log).read_text().split() == ["4", "6", "2", "8"]
    assert done["count"].rows("numbers") == 2 + 3 + 1 + 4
    assert "commits" not in Folder(f"{tmp_path}/steps/count").names()


def test_an_unfinished_step_of_another_configuration_is_refused_too(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run_steps([counting([4, 14])], str(tmp_path), executor="local")
    with pytest.raises(UserError, match="config.units"):
        run_steps([counting([4, 6])], str(tmp_path), executor="local")


def test_a_row_lost_without_a_reason_fails_the_step(tmp_path):
    def work(context):
        context.ledger.append(LedgerRow(source="s", rows_in=3, kept=1, dropped={"short": 1}))

    step = Step(name="lossy", version=1, config={}, inputs={}, work=work)
    with pytest.raises(RuntimeError, match="3 pairs in, 1 kept.*1 unaccounted for"):
        run_steps([step], str(tmp_path), executor="local")
    assert not Folder(f"{tmp_path}/steps/lossy").exists("manifest.json")


def test_steps_must_come_after_their_inputs(tmp_path):
    first = counting([4])
    with pytest.raises(ValueError, match="before its input"):
        run_steps([doubling(first), first], str(tmp_path), executor="local")


def test_drift_is_reported_leaf_by_leaf():
    old = {"config": {"bands": 14, "rules": {"a": 1}}, "version": 1}
    new = {"config": {"bands": 20, "rules": {"a": 1, "b": 2}}, "version": 1}
    assert drifted_keys(old, new) == [
        "config.bands was 14, is now 20",
        "config.rules.b was null, is now 2",
    ]


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
    )
)
def test_ledgers_that_balance_still_balance_when_merged(parts):
    rows = [
        LedgerRow(source=s, rows_in=k + d + q, kept=k, dropped={"x": d}, quarantined={"y": q})
        for s, k, d, q in parts
    ]
    merged = merge_ledger(reversed(rows))
    check_ledger("step", merged)
    assert sum(row.rows_in for row in merged) == sum(row.rows_in for row in rows)
    assert [row.source for row in merged] == sorted({row.source for row in rows})


def test_progress_says_rate_eta_and_reasons(caplog):
    progress = Progress("clean", total=4)
    progress.started -= 10
    row = {"rows_in": 100, "dropped": {"too_short": 7}, "quarantined": {}}
    with caplog.at_level(logging.INFO, logger="embedmix"):
        progress.advance({"ledger": [row]})
        progress.report()
    line = caplog.messages[-1]
    assert line.startswith("clean: 25%")
    assert "<00:30" in line and "10 rows/s" in line and "dropped: too_short 7" in line


@pytest.mark.parametrize("actors", [None, 1, 2])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path, ray_session, actors):
    units = list(range(0, 12))
    local = run_steps([counting(units)], str(tmp_path / "local"), executor="local")
    spread = run_steps([counting(units, actors=actors)], str(tmp_path / "ray"), executor="ray")
    assert local["count"].digest == spread["count"].digest
    assert local["count"].ledger == spread["count"].ledger


def test_a_users_mistake_inside_a_worker_arrives_as_it_was(tmp_path, ray_session):
    with pytest.raises(UserError) as error:
        run_steps([counting([4, 13])], str(tmp_path), executor="ray")
    assert str(error.value) == "found: 13\nexpected: another number\ndo: choose again"


def test_a_bug_inside_a_worker_fails_the_step(tmp_path, ray_session):
    with pytest.raises(Exception, match="a bug"):
        run_steps([counting([4, 14])], str(tmp_path), executor="ray")
    assert not Folder(f"{tmp_path}/steps/count").exists("manifest.json")


def test_kill_minus_nine_loses_no_committed_unit(tmp_path):
    """The driver dies in the middle of a step; the same command afterwards finishes it."""
    script = tmp_path / "driver.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys
            sys.path.insert(0, sys.argv[3])
            from test_steps import counting, run_steps
            import datagen.steps

            if sys.argv[2] == "die":
                report = datagen.steps.Progress.advance
                def die(self, record):
                    if record["index"] == 2:
                        os.kill(os.getpid(), signal.SIGKILL)
                    report(self, record)
                datagen.steps.Progress.advance = die
            step = counting([4, 6, 8, 10], log=sys.argv[1] + "/log")
            run_steps([step], sys.argv[1], executor="local")
            """
        )
    )

    def drive(mode: str) -> int:
        command = [sys.executable, str(script), str(tmp_path), mode, os.path.dirname(__file__)]
        return subprocess.run(command, check=False).returncode

    assert drive("die") == -signal.SIGKILL
    assert drive("live") == 0
    assert (tmp_path / "log").read_text().split() == ["4", "6", "8", "10"]
    folder = Folder(f"{tmp_path}/steps/count")
    assert read_manifest(folder).rows("numbers") == 2 + 3 + 4 + 5
    assert verify(folder) == []


TRY_TO_JOIN = """
from datagen.schema import UserError
from datagen.steps import start_ray
try:
    start_ray()
except UserError as error:
    print(error)
"""


def test_a_cluster_that_does_not_let_us_in_is_an_error_in_three_parts(tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, but nobody listens
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        brief = {
            "RAY_gcs_server_request_timeout_seconds": "2",
            "RAY_gcs_rpc_server_connect_timeout_s": "1",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "1",
            "RAY_py_gcs_connect_timeout_s": "1",
            "RAY_NUM_REDIS_GET_RETRIES": "1",
        }
        told = subprocess.run(
            [sys.executable, "-c", TRY_TO_JOIN],
            env={**os.environ, **brief, "RAY_ADDRESS": address},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    assert told.stdout.splitlines() == [
        f"found: no Ray cluster lets this process in at {address}",
        "expected: the address of a running head, and its token where it asks for one",
        "do: check RAY_ADDRESS, and set RAY_AUTH_MODE=token here too if the head has it",
    ]
