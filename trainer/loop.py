"""The training loop in plain PyTorch: batches of the plan, in micro-batches, over two stages.

A batch is tokenised once and cut into micro-batches of rows with at most `micro_tokens` tokens. The
texts of a micro-batch (queries, positives, negatives together, equal ones once) are sorted by
length and embedded in small passes, so that hardly anything is padded. The loss has no in-batch
negatives, so the sum over micro-batches is the gradient of the whole batch, exactly, without a
second forward pass.

Nothing here depends on time or order of arrival. Rows are gathered with `F.embedding`, never by
indexing: the backward of an index adds with atomics on several threads.
"""

import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from datagen.schema import UserError
from trainer.checkpoint import load_checkpoint, read_state, save_checkpoint
from trainer.data import Example, StageData
from trainer.encoder import embed_sorted, load_encoder, self_check, tokenize
from trainer.loss import hard_negative_infonce
from trainer.progress import Meter
from trainer.train import StageConfig, TrainConfig, refuse_drift

log = logging.getLogger("embedmix")

PASS_TOKENS = 1024  # padded tokens of one forward pass: more is no faster on CPU, and pads more


def run_stages(
    config: TrainConfig, identity: dict[str, Any], *, place: Path
) -> tuple[PreTrainedModel, Any, list[dict[str, Any]]]:
    """Train all stages from the base, or from the checkpoint in folder `place`.

    Returns the model, its tokenizer and the figures of each stage. UserError when the checkpoint is
    of another configuration, and when a loss or gradient is not finite.
    """
    torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
    data = [StageData(config.mix, s.name, negatives=s.negatives) for s in config.stages]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # On CPU the backward pass of sdpa is slow for short texts: a step takes a third longer.
    attention = "sdpa" if device == "cuda" else "eager"
    model, tokenizer = load_encoder(config.base, attn_implementation=attention)
    torch.nn.Module.to(model, device)
    self_check(model, tokenizer)
    run = _Run(config, model, tokenizer, identity=identity, place=place)
    for number in range(len(run.finished), len(config.stages)):
        run.stage(number, data[number])
    return model, tokenizer, run.finished


def learning_rate(stage: StageConfig, step: int, steps: int) -> float:
    """Linear warm-up over the first steps, then linear decay that reaches zero after the last."""
    warmup = warmup_steps(stage, steps)
    if step < warmup:
        return stage.learning_rate * (step + 1) / warmup
    return stage.learning_rate * (steps - step) / max(1, steps - warmup)


def warmup_steps(stage: StageConfig, steps: int) -> int:
    """The configured warm-up, but at most a tenth of the steps."""
    return min(stage.warmup_steps, steps // 10)


def new_optimizer(model: PreTrainedModel, weight_decay: float) -> torch.optim.AdamW:
    """AdamW without decay on norms and biases."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def cut_rows(tokens: Sequence[int], micro_tokens: int) -> Iterator[slice]:
    """Runs of rows with at most `micro_tokens` tokens together; a longer row stands alone."""
    begin = total = 0
    for i, count in enumerate(tokens):
        if i > begin and total + count > micro_tokens:
            yield slice(begin, i)
            begin, total = i, 0
        total += count
    yield slice(begin, len(tokens))


class _Run:
    """The state of a run: weights, optimiser, position, files."""

    def __init__(
        self,
        config: TrainConfig,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        identity: dict[str, Any],
        place: Path,
    ):
        self.config, self.model, self.tokenizer, self.identity = config, model, tokenizer, identity
        self.name = Path(config.output).name
        self.model.train()
        self.metrics, self.checkpoint = place / "metrics.jsonl", place / "checkpoint.safetensors"
        self.finished: list[dict[str, Any]] = []
        self.sums: dict[str, float] = {}
        self.first_step = self.lines = 0
        self.optimizer = new_optimizer(model, config.weight_decay)
        place.mkdir(parents=True, exist_ok=True)
        self._resume()

    def _resume(self) -> None:
        state = read_state(self.checkpoint)
        kept: list[str] = []
        if state is not None:
            refuse_drift(self.checkpoint.parent, state["identity"], self.identity)
            load_checkpoint(self.checkpoint, model=self.model, optimizer=self.optimizer)
            self.finished, self.first_step = state["finished"], state["step"]
            self.sums, self.lines = state["sums"], state["metric_lines"]
            kept = self.metrics.read_text().splitlines(keepends=True)[: self.lines]
            stage = len(self.finished) + 1
            log.info("%s: resuming stage %d at step %d", self.name, stage, self.first_step)
        self.metrics.write_text("".join(kept))

    def stage(self, number: int, data: StageData) -> None:
        """Train one stage from where the checkpoint left it, and add its figures to `finished`."""
        stage, first = self.config.stages[number], self.first_step
        plan = _plan(data, stage, self.config.seed)
        meter = Meter(f"{self.name} {stage.name}", steps=len(plan), done=first, sums=self.sums)
        for step in range(first, len(plan)):
            epoch, rows = plan[step]
            # Matters only for a base with dropout: a resumed run draws what it would have drawn.
            torch.manual_seed(self.config.seed * 1_000_003 + number * 500_009 + step)
            rate = learning_rate(stage, step, len(plan))
            examples = data.examples(rows.tolist(), seed=self.config.seed, epoch=epoch)
            figures = self._step(stage, examples, rate)
            meter.add(step, figures)
            self._write_metrics(
                {"stage": stage.name, "step": step, "learning_rate": rate, **figures}
            )
            if (step + 1) % self.config.checkpoint_steps == 0 and step + 1 < len(plan):
                self._save(step + 1, meter.sums)
        skipped = {k: v for k, v in data.skipped.items() if v}
        warmup = warmup_steps(stage, len(plan))
        figures = {"stage": stage.name, **meter.summary(), "warmup_steps": warmup}
        self.finished.append({**figures, "skipped": skipped})
        self.first_step, self.sums = 0, {}
        self.optimizer = new_optimizer(self.model, self.config.weight_decay)
        self._save(0, {})

    def _step(self, stage: StageConfig, examples: Sequence[Example], rate: float) -> dict[str, Any]:
        texts = [text for example in examples for text in example.texts]
        flat = iter(tokenize(self.tokenizer, texts, max_length=stage.max_length))
        ids = [[next(flat) for _ in example.texts] for example in examples]
        loss = accuracy = tokens = 0.0
        for part in cut_rows([sum(map(len, row)) for row in ids], self.config.micro_tokens):
            loss_B, accuracy_B, used = self._forward(ids[part])
            self._refuse_not_finite(loss_B.sum().item(), "loss", examples[part], stage)
            (loss_B.sum() / len(examples)).backward()
            loss += loss_B.sum().item() / len(examples)
            accuracy += accuracy_B.sum().item() / len(examples)
            tokens += used
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self._refuse_not_finite(norm.item(), "norm of the gradient", examples, stage)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        rows = len(examples)
        return {
            "loss": loss,
            "accuracy": accuracy,
            "rows": rows,
            "tokens": int(tokens),
            "gradient_norm": norm.item(),
        }

    def _forward(self, rows: Sequence[Sequence[list[int]]]) -> tuple[Tensor, Tensor, int]:
        """Loss and accuracy [B] of a micro-batch, and the number of tokens embedded for it."""
        texts = sorted({tuple(text) for row in rows for text in row}, key=lambda t: (len(t), t))
        place = {text: i for i, text in enumerate(texts)}
        widest = max(map(len, rows))
        # Rows with fewer negatives are filled with their query, and masked.
        index = torch.tensor(
            [[place[tuple(t)] for t in [*row, *[row[0]] * (widest - len(row))]] for row in rows]
        )
        mask_BN = torch.tensor([[j < len(row) for j in range(2, widest)] for row in rows])
        device = self.model.device
        mixed = self.config.dtype == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            embeddings_UD = embed_sorted(
                self.model,
                texts,
                pad_id=self.tokenizer.pad_token_id,
                pass_tokens=PASS_TOKENS,
                # Autocast leaves residuals in fp32; in bf16 a step takes a sixth less time.
                residuals=torch.bfloat16 if mixed else None,
            )
        rows_BSD = F.embedding(index.to(device), embeddings_UD)
        loss_B, accuracy_B = hard_negative_infonce(
            rows_BSD[:, 0],
            rows_BSD[:, 1],
            rows_BSD[:, 2:],
            mask_BN.to(device),
            temperature=self.config.temperature,
        )
        return loss_B, accuracy_B, sum(map(len, texts))

    def _refuse_not_finite(
        self, value: float, what: str, examples: Sequence[Example], stage: StageConfig
    ) -> None:
        if math.isfinite(value):
            return
        queries = ", ".join(example.query_id for example in examples[:16])
        raise UserError(
            found=f"the {what} is {value} in stage {stage.name}; its queries: {queries}",
            expected="a finite number",
            do="look at these rows of the mix, or lower the learning rate; running the same "
            "configuration again resumes at the last checkpoint",
        )

    def _write_metrics(self, record: dict[str, Any]) -> None:
        with self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.lines += 1

    def _save(self, step: int, sums: dict[str, float]) -> None:
        state = {
            "identity": self.identity,
            "finished": self.finished,
            "step": step,
            "sums": sums,
            "metric_lines": self.lines,
        }
        save_checkpoint(self.checkpoint, state, model=self.model, optimizer=self.optimizer)


def _plan(data: StageData, stage: StageConfig, seed: int) -> list[tuple[int, np.ndarray]]:
    """(epoch, row numbers) of every batch of a stage."""
    return [
        (epoch, rows)
        for epoch in range(stage.epochs)
        for rows in data.plan(
            seed=seed, epoch=epoch, batch_size=stage.batch_size, max_rows=stage.max_rows
        )
    ]
