"""The figures of a stage: sums, first and last loss, and a line every 10 s with rates and ETA."""

import logging
import time
from typing import Any

log = logging.getLogger("embedmix")

LOG_INTERVAL_S = 10.0
WINDOW = 0.1  # first and last loss are means over this share of the steps, at least one


class Meter:
    """Adds up the figures of the steps; `sums` survive a checkpoint, rates are of this process."""

    def __init__(self, name: str, *, steps: int, done: int, sums: dict[str, float]):
        self.name, self.steps, self.done_before = name, steps, done
        self.sums = {"rows": 0, "tokens": 0, "seconds": 0.0}
        self.sums |= {f"{end}_{figure}": 0.0 for end in ("first", "last") for figure in _FIGURES}
        self.sums |= sums
        self.window = max(1, round(steps * WINDOW))
        self.started = self.logged = self.before = time.monotonic()
        self.rows = self.tokens = 0

    def add(self, step: int, figures: dict[str, Any]) -> None:
        """Count step number `step` (from 0), and log when it is time."""
        now = time.monotonic()
        self.sums["rows"] += figures["rows"]
        self.sums["tokens"] += figures["tokens"]
        self.sums["seconds"] += now - self.before
        self.before = now
        self.rows += figures["rows"]
        self.tokens += figures["tokens"]
        for end, inside in (
            ("first", step < self.window),
            ("last", step >= self.steps - self.window),
        ):
            for figure in _FIGURES if inside else ():
                self.sums[f"{end}_{figure}"] += figures[figure] / self.window
        if now - self.logged >= LOG_INTERVAL_S or step + 1 == self.steps:
            self.logged = now
            self._log(step + 1, figures, max(now - self.started, 1e-9))

    def _log(self, step: int, figures: dict[str, Any], elapsed: float) -> None:
        left = elapsed / (step - self.done_before) * (self.steps - step)
        log.info(
            "%s: step %d/%d, loss %.3f, accuracy@1 %.2f, %.0f rows/s, %.0f tokens/s, %d:%02d left",
            self.name, step, self.steps, figures["loss"], figures["accuracy"],
            self.rows / elapsed, self.tokens / elapsed, left // 60, left % 60,
        )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Steps, rows, tokens, seconds; loss and accuracy@1 at the beginning and the end."""
        return {
            "steps": self.steps,
            "rows": int(self.sums["rows"]),
            "tokens": int(self.sums["tokens"]),
            "seconds": round(self.sums["seconds"], 1),
            **{
                name: round(v, 4) for name, v in self.sums.items() if name[:5] in ("first", "last_")
            },
        }


_FIGURES = ("loss", "accuracy")
