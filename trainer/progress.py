"""The figures of a stage: sums, losses by task, and a line every 10 s with rates, MFU and ETA.

Idle is the share of the time in which steps waited for their rows to be read and tokenised. MFU is
the share of the device's bf16 matrix rate that went into the forward and backward pass of the
tokens embedded, once each: 6 operations a weight, and attention where the length is known. A second
forward pass of GradCache or of gradient checkpointing is not counted as use.
"""

import logging
import resource
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from datagen.schema import UserError
from trainer.distributed import rank

log = logging.getLogger("embedmix")

LOG_INTERVAL_S = 10.0
WINDOW = 0.1  # first and last loss are means over this share of the steps, at least one
# Dense bf16 operations per second, as their makers state them.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
_FIGURES = ("loss", "accuracy")
_IDLE_WORTH_A_WORD = 0.01
T = TypeVar("T")


def token_flops(model: PreTrainedModel, *, length: int = 0) -> float:
    """Operations of forward and backward pass for a token of a text of `length` tokens."""
    (table,) = model.get_input_embeddings().parameters()
    weights = sum(p.numel() for p in model.parameters() if p is not table)
    heads = model.config.num_attention_heads
    width = getattr(model.config, "head_dim", None) or model.config.hidden_size // heads
    return 6 * weights + 12 * model.config.num_hidden_layers * heads * width * length


def peak_flops() -> float | None:
    """The bf16 rate of the device; None where it is not known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((rate for known, rate in PEAK_FLOPS.items() if known in name), None)


def peak_gib() -> float:
    """The most memory that this process has held: of its device, or resident without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB


class Meter:
    """Adds up the figures of the steps; `sums` survive a checkpoint, rates are of this process."""

    def __init__(
        self, name: str, *, steps: int, done: int, sums: dict[str, Any], flops: float, devices: int
    ):
        self.name, self.steps, self.done_before = name, steps, done
        self.sums: dict[str, Any] = {"rows": 0, "tokens": 0, "seconds": 0.0, "tasks": {}}
        self.sums["idle_seconds"] = self.idle = 0.0  # in which no rows were there
        self.sums |= {f"{end}_{figure}": 0.0 for end in ("first", "last") for figure in _FIGURES}
        self.sums |= sums
        self.window = max(1, round(steps * WINDOW))
        self.started = self.logged = self.before = time.monotonic()
        self.rows = self.tokens = 0
        peak = peak_flops()
        self.use_of_token = flops / (peak * devices) if peak else None

    def waiting(self, rows: Iterable[T]) -> Iterator[T]:
        """The same items; the time until each is there counts as idle."""
        items = iter(rows)
        while True:
            began = time.monotonic()
            item = next(items, None)
            waited = time.monotonic() - began
            self.idle += waited
            self.sums["idle_seconds"] += waited
            if item is None:
                return
            yield item

    def add(self, step: int, figures: dict[str, Any]) -> dict[str, float]:
        """Count step number `step` (from 0), and log when it is time; gives the rates so far."""
        now = time.monotonic()
        self.sums["rows"] += figures["rows"]
        self.sums["tokens"] += figures["tokens"]
        self.sums["seconds"] += now - self.before
        self.before = now
        self.rows += figures["rows"]
        self.tokens += figures["tokens"]
        losses = self.sums["tasks"].setdefault(figures["task"], [0, 0.0])
        losses[0] += figures["rows"]
        losses[1] += figures["loss"] * figures["rows"]
        for end, inside in (
            ("first", step < self.window),
            ("last", step >= self.steps - self.window),
        ):
            for figure in _FIGURES if inside else ():
                self.sums[f"{end}_{figure}"] += figures[figure] / self.window
        rates = self._rates(step + 1, max(now - self.started, 1e-9))
        if rank() == 0 and (now - self.logged >= LOG_INTERVAL_S or step + 1 == self.steps):
            self.logged = now
            self._log(step + 1, figures, rates)
        return rates

    def _rates(self, step: int, elapsed: float) -> dict[str, float]:
        """Speed, use of the device, its memory and the time left, of this process."""
        rates = {"rows_per_s": self.rows / elapsed, "tokens_per_s": self.tokens / elapsed}
        if self.use_of_token is not None:
            rates["mfu"] = self.use_of_token * self.tokens / elapsed
        left = elapsed / (step - self.done_before) * (self.steps - step)
        return {**rates, "idle": self.idle / elapsed, "gib": peak_gib(), "seconds_left": left}

    def _log(self, step: int, figures: dict[str, Any], rates: dict[str, float]) -> None:
        minutes, seconds = divmod(rates["seconds_left"], 60)
        log.info(
            "%s: step %d/%d, loss %.3f, accuracy@1 %.2f, %.0f rows/s, %.0f tokens/s%s%s, "
            "%d:%02d left",
            self.name, step, self.steps, figures["loss"], figures["accuracy"],
            rates["rows_per_s"], rates["tokens_per_s"],
            f", MFU {rates['mfu']:.0%}" if "mfu" in rates else "",
            self._aside(rates), minutes, seconds,
        )  # fmt: skip

    def _aside(self, rates: dict[str, float]) -> str:
        waits = rates["idle"] >= _IDLE_WORTH_A_WORD
        return f", {rates['gib']:.1f} GiB" + (f", {rates['idle']:.0%} idle" if waits else "")

    def summary(self) -> dict[str, Any]:
        """Steps, rows, tokens, seconds, idle ones; loss and accuracy@1 at both ends."""
        return {
            "steps": self.steps,
            "rows": int(self.sums["rows"]),
            "tokens": int(self.sums["tokens"]),
            "seconds": round(self.sums["seconds"], 1),
            "idle_seconds": round(self.sums["idle_seconds"], 2),
            "task_losses": {
                task: round(loss / rows, 4) for task, (rows, loss) in self.sums["tasks"].items()
            },
            **{
                name: round(v, 4) for name, v in self.sums.items() if name[:5] in ("first", "last_")
            },
        }


class Board:
    """Figures of steps for TensorBoard, in a folder; nothing where it is not asked for."""

    def __init__(self, folder: str | None):
        self.writer = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                found="the tensorboard library is not installed",
                expected="it, where --tensorboard is given",
                do="pip install tensorboard",
            ) from error
        self.writer = SummaryWriter(folder)

    def add(self, step: int, record: dict[str, Any]) -> None:
        """One point for each number of a step, losses by task as well."""
        if self.writer is None:
            return
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
        numbers[f"loss of {record['task']}"] = record["loss"]
        for name, value in numbers.items():
            self.writer.add_scalar(f"{record['stage']}/{name}", value, step)
        self.writer.flush()
