"""The figures of a stage: what counts as waiting, and what a checkpoint carries on."""

import time
from typing import Any

from trainer.progress import Meter

FIGURES = {"loss": 2.0, "accuracy": 0.5, "task": "retrieval", "rows": 8, "tokens": 100}


def meter(steps: int, *, done: int = 0, sums: dict[str, Any] | None = None) -> Meter:
    return Meter("run", steps=steps, done=done, sums=sums or {}, flops=1.0, devices=1)


def test_waiting_for_rows_is_idle_and_working_on_them_is_not():
    def slowly():
        for row in range(3):
            time.sleep(0.05)
            yield row

    found, seen = meter(3), []
    began = time.monotonic()
    for row in found.waiting(slowly()):
        time.sleep(0.05)
        seen.append(row)
    assert seen == [0, 1, 2]
    assert 0.15 <= found.idle <= time.monotonic() - began - 0.15
    assert found.sums["idle_seconds"] == found.idle


def test_sums_go_on_where_a_checkpoint_left_them():
    whole, first = meter(4), meter(4)
    for step in range(4):
        whole.add(step, FIGURES | {"loss": float(step)})
    for step in range(2):
        first.add(step, FIGURES | {"loss": float(step)})
    second = meter(4, done=2, sums=first.sums)
    for step in (2, 3):
        second.add(step, FIGURES | {"loss": float(step)})
    timeless = [
        {key: value for key, value in one.summary().items() if "seconds" not in key}
        for one in (whole, second)
    ]
    assert timeless[0] == timeless[1]
    assert (timeless[0]["first_loss"], timeless[0]["last_loss"]) == (0.0, 3.0)
    assert timeless[0]["task_losses"] == {"retrieval": 1.5}


def test_rates_say_what_is_left():
    found = meter(4)
    found.add(0, FIGURES)
    rates = found.add(1, FIGURES)
    assert set(rates) == {"rows_per_s", "tokens_per_s", "idle", "gib", "seconds_left"}
    assert rates["rows_per_s"] > 0 and rates["idle"] == 0 and rates["gib"] > 0.01
    assert found.add(3, FIGURES)["seconds_left"] == 0
