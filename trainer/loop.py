"""The training loop in plain PyTorch: the batches of the plan, over the stages, on any processes.

All processes know the same plan; each reads, tokenises and embeds its part of every batch, so a
batch is of one task everywhere.

Nothing depends on time or order of arrival: a run that was killed resumes at its last checkpoint
and ends in the same weights, bit for bit on CPU.
"""

import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from datagen.schema import UserError
from trainer.checkpoint import load_checkpoint, newest, read_state, save_checkpoint
from trainer.configuration import is_causal
from trainer.data import Example, StageData
from trainer.distributed import parallel, rank, total, world_size
from trainer.encoder import check_packed, load_encoder, self_check
from trainer.export import kept_folder
from trainer.lora import add_lora, merged
from trainer.objective import Gradients, Objective
from trainer.packed import PackedEncoder
from trainer.plan import Share, shares, stage_plan
from trainer.progress import Board, Meter, token_flops
from trainer.schedule import learning_rate, new_optimizer, warmup_steps
from trainer.teacher import CachedTeacher
from trainer.train import StageConfig, TrainConfig, export_run, refuse_drift

log = logging.getLogger("embedmix")


def run_stages(
    config: TrainConfig, identity: dict[str, Any], *, place: Path, device: torch.device
) -> tuple[PreTrainedModel, Any, list[dict[str, Any]]]:
    """Train all stages from the base, or from the checkpoint in folder `place`.

    Returns the model (whole in the first process), its tokenizer and the figures of each stage.
    UserError when the checkpoint is of another configuration, and when a loss or gradient is not
    finite.
    """
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(config.threads or max(1, cores))
    data = [
        StageData(config.mix, s.name, negatives=s.negatives, draw=s.draw) for s in config.stages
    ]
    run = _Run(config, identity, place=place, device=device)
    for number in range(len(run.finished), len(config.stages)):
        run.stage(number, data[number])
    # The others must not read the checkpoint now: the first removes it once it has exported.
    model = run.whole_model() if rank() == 0 else run.model
    return model, run.tokenizer, run.finished


def load_packed(
    folder: str, *, config: TrainConfig, device: torch.device
) -> tuple[PackedEncoder, Any]:
    """A model that embeds without padding, and its tokenizer; checked, and on the device."""
    model, tokenizer = load_encoder(folder, causal=config.causal)
    torch.nn.Module.to(model, device)
    self_check(model, tokenizer, causal=is_causal(model.config))
    encoder = check_packed(model, tokenizer)
    encoder.pooling, encoder.mixed = config.pooling, config.dtype == "bfloat16"
    return encoder, tokenizer


class _Run:
    """The state of a run: weights, optimiser, position, files."""

    def __init__(
        self, config: TrainConfig, identity: dict[str, Any], *, place: Path, device: torch.device
    ):
        self.config, self.identity, self.device = config, identity, device
        self.name = Path(config.output).name
        packed, self.tokenizer = load_packed(config.base, config=config, device=device)
        self.model = packed.model.train()
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if config.compile:
            self.model.compile(dynamic=True)
        torch.manual_seed(config.seed)  # adapters begin at random
        if config.lora:
            add_lora(self.model, config.lora)
        self.encoder = parallel(packed, config.parallel)
        self.gradients = Gradients(
            encoder=self.encoder,
            device=device,
            objective=Objective(
                loss=config.loss,
                temperature=config.temperature,
                matryoshka=config.matryoshka,
                distill=config.distill,
                distill_weight=config.distill_weight,
            ),
            micro_tokens=config.micro_tokens,
            pad_id=self.tokenizer.pad_token_id,
            teacher=None if config.teacher_cache else self._teacher(),
            cached=self._cached_teacher(),
        )
        self.board = Board(config.tensorboard if rank() == 0 else None)
        self.metrics, self.checkpoint = place / "metrics.jsonl", place / "checkpoint.safetensors"
        self.finished: list[dict[str, Any]] = []
        self.sums: dict[str, float] = {}
        self.first_step = self.lines = 0
        self.optimizer = new_optimizer(self.model, config.weight_decay)
        place.mkdir(parents=True, exist_ok=True)
        self._resume()

    def _teacher(self) -> PackedEncoder | None:
        if self.config.teacher is None:
            return None
        teacher, tokenizer = load_packed(
            self.config.teacher, config=self.config, device=self.device
        )
        wide = teacher.model.config.hidden_size >= self.model.config.hidden_size
        if tokenizer.get_vocab() != self.tokenizer.get_vocab() or not wide:
            raise UserError(
                found=f"teacher {self.config.teacher} with another tokenizer or narrower vectors",
                expected="the tokenizer of the base, and vectors at least as wide",
                do="take a teacher of the same family, or distill scores: kl, margin",
            )
        return teacher.eval()

    def _cached_teacher(self) -> CachedTeacher | None:
        if self.config.teacher is None or self.config.teacher_cache is None:
            return None
        root, width = self.config.teacher_cache, self.model.config.hidden_size
        return CachedTeacher(self.config.teacher, root=root, width=width, device=self.device)

    def _resume(self) -> None:
        found = newest(self.checkpoint)
        state = read_state(found)
        kept: list[str] = []
        if state is not None:
            refuse_drift(self.checkpoint.parent, state["identity"], self.identity)
            load_checkpoint(found, model=self.model, optimizer=self.optimizer)
            self.finished, self.first_step = state["finished"], state["step"]
            self.sums, self.lines = state["sums"], state["metric_lines"]
            kept = self.metrics.read_text().splitlines(keepends=True)[: self.lines]
            stage = len(self.finished) + 1
            log.info("%s: resuming stage %d at step %d", self.name, stage, self.first_step)
        if world_size() > 1:
            dist.barrier()  # nobody reads what the first process now cuts
        if rank() == 0:
            self.metrics.write_text("".join(kept))

    def stage(self, number: int, data: StageData) -> None:
        """Train one stage from where the checkpoint left it, and add its figures to `finished`."""
        stage, first = self.config.stages[number], self.first_step
        plan = stage_plan(data, stage, self.config.seed)
        meter = Meter(
            f"{self.name} {stage.name}",
            steps=len(plan),
            done=first,
            sums=self.sums,
            flops=token_flops(self.model),
            devices=world_size(),
        )
        read = shares(
            data,
            plan[first:],
            tokenizer=self.tokenizer,
            max_length=stage.max_length,
            seed=self.config.seed,
            pool_instruction=self.config.pool_instruction,
        )
        for step, share in zip(range(first, len(plan)), meter.waiting(read), strict=True):
            # Matters only for a base with dropout: a resumed run draws what it would have drawn.
            torch.manual_seed(self.config.seed * 1_000_003 + number * 500_009 + step)
            rate = learning_rate(self.config, stage, step=step, steps=len(plan))
            figures = self._step(stage, share, rate)
            rates = meter.add(step, figures)
            record = {"stage": stage.name, "step": step, "learning_rate": rate, **figures}
            self._write_metrics({**record, "speed": rates})
            self.board.add(step, record | rates)
            due = (step + 1) % self.config.checkpoint_steps == 0
            if step + 1 < len(plan) and (due or self._kept(step + 1)):
                self._save(step + 1, meter.sums)
                self._keep(step + 1)
        skipped = {k: v for k, v in data.skipped.items() if v}
        warmup = warmup_steps(stage, len(plan))
        summary = {"stage": stage.name, **meter.summary(), "warmup_steps": warmup}
        self.finished.append({**summary, "skipped": skipped})
        self.first_step, self.sums = 0, {}
        self.optimizer = new_optimizer(self.model, self.config.weight_decay)
        self._save(0, {})
        self._keep(0)

    def _step(self, stage: StageConfig, share: Share, rate: float) -> dict[str, Any]:
        count, examples = share.total, share.examples
        try:
            found = self.gradients.add(examples, share.ids, count=count, negatives=stage.negatives)
        except torch.OutOfMemoryError as error:
            raise UserError(
                found=f"no memory left for {self.config.micro_tokens} tokens at once: {error}",
                expected="activations, weights and optimiser within the device's memory",
                do="lower micro_tokens (results stay the same), set gradient_checkpointing, or "
                "shard the model: parallel fsdp",
            ) from error
        loss = total(sum(found.losses)) / count
        if not math.isfinite(loss):
            bad = [e for e, x in zip(examples, found.losses, strict=True) if not math.isfinite(x)]
            _refuse(loss, "loss", bad, stage)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if not math.isfinite(norm.item()):
            _refuse(norm.item(), "norm of the gradient", examples, stage)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "loss": loss,
            "accuracy": total(found.hits) / count,
            "task": share.task,
            "rows": count,
            "tokens": int(total(found.tokens)),
            "gradient_norm": norm.item(),
        }

    def _write_metrics(self, record: dict[str, Any]) -> None:
        if rank() == 0:
            with self.metrics.open("a") as file:
                file.write(json.dumps(record) + "\n")
        self.lines += 1

    def _save(self, step: int, sums: dict[str, Any]) -> None:
        state = {
            "identity": self.identity,
            "finished": self.finished,
            "step": step,
            "sums": sums,
            "metric_lines": self.lines,
        }
        save_checkpoint(self.checkpoint, state, model=self.model, optimizer=self.optimizer)

    def _kept(self, step: int) -> int | None:
        """The number over all stages of a step of this one, if a model of it is to be kept."""
        number = sum(stage["steps"] for stage in self.finished) + step
        return None if number % (self.config.keep_steps or number + 1) else number

    def _keep(self, step: int) -> None:
        """Export the checkpoint as a model beside the output, if that is asked for."""
        number = self._kept(step)
        if number is None or rank() != 0:
            return
        place = kept_folder(self.config.output, number)
        place.parent.mkdir(parents=True, exist_ok=True)
        model = self.whole_model()
        export_run(self.config, place, model, self.tokenizer, stages=self.finished)
        log.info("%s: kept step %d in %s", self.name, number, place)

    def whole_model(self) -> PreTrainedModel:
        """The model of the last checkpoint, in one piece and with its usual kernel."""
        model, _ = load_encoder(self.config.base, causal=self.config.causal)
        adapted = add_lora(model, self.config.lora) if self.config.lora else None
        load_checkpoint(self.checkpoint, model=model, optimizer=None)
        return model if adapted is None else merged(adapted)


def _refuse(value: float, what: str, examples: Sequence[Example], stage: StageConfig) -> None:
    queries = ", ".join(example.query_id for example in examples[:16])
    raise UserError(
        found=f"the {what} is {value} in stage {stage.name}; its queries: {queries}",
        expected="a finite number",
        do="look at these rows of the mix, or lower the learning rate; running the same "
        "configuration again resumes at the last checkpoint",
    )
