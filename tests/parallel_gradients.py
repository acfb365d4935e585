"""Gradients of one batch on any number of processes: written to a file by the first of them.

torchrun --nproc-per-node 2 tests/parallel_gradients.py OUTPUT
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from tiny_encoder import tiny_model

from trainer import loop
from trainer.data import Example
from trainer.distributed import own_rows, parallel, process_group, rank
from trainer.objective import Gradients, Objective
from trainer.packed import PackedEncoder
from trainer.train import StageConfig, TrainConfig, train

KINDS = ("ddp", "fsdp")
MIXED = "fsdp in bf16"
CASES = {  # loss, tokens at once: the small ones cut the batch
    "hard-negatives": (Objective(temperature=0.1), 40),
    "qwen3-whole": (Objective(loss="qwen3", temperature=0.1), 10_000),
    "qwen3-cached": (Objective(loss="qwen3", temperature=0.1), 40),
    "all-matryoshka": (Objective(loss="all", temperature=0.1, matryoshka=True), 40),
}
ROWS, NEGATIVES = 7, 2


def rows() -> tuple[list[Example], list[list[list[int]]]]:
    """Rows of random token ids, of which two share their positive and the last has one negative."""
    draw = torch.Generator().manual_seed(1)

    def text() -> list[int]:
        length = int(torch.randint(2, 12, (1,), generator=draw))
        return torch.randint(2, 400, (length,), generator=draw).tolist()

    ids = [[text() for _ in range(2 + NEGATIVES)] for _ in range(ROWS)]
    ids[4][1] = ids[0][1]
    ids[-1] = ids[-1][:-1]
    numbers = [[10 * n + place for place in range(len(row) - 1)] for n, row in enumerate(ids)]
    numbers[4][0] = numbers[0][0]
    examples = [
        Example(
            query_id=str(n), query=f"query {n}", positive="", negatives=(), task="retrieval",
            in_batch=True, documents=tuple(row), clusters=(None,) * len(row),
            scores=(0.9, 0.5, 0.88)[: len(row)], known=(row[0],),
        )
        for n, row in enumerate(numbers)
    ]  # fmt: skip
    return examples, ids


def gradients(kind: str, case: str) -> dict[str, torch.Tensor]:
    """The gradient of the batch by this process, or by it and its siblings."""
    model = tiny_model()
    encoder = PackedEncoder(model, mixed=kind == MIXED)
    objective, micro_tokens = CASES[case]
    work = Gradients(
        encoder=parallel(encoder, kind.split()[0]), device=torch.device("cpu"), objective=objective,
        micro_tokens=micro_tokens, pad_id=1,
    )  # fmt: skip
    examples, ids = rows()
    own = own_rows(ROWS)
    work.add(examples[own], ids[own], count=ROWS, negatives=NEGATIVES)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    whole = {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in found.items()}
    return {f"{kind} {case} {name}": gradient.clone() for name, gradient in whole.items()}


def sharded(mix: str, base: str, output: str) -> TrainConfig:
    """Two short stages, sharded over the processes there are."""
    stages = tuple(
        StageConfig(name=name, negatives=2, learning_rate=1e-3, batch_size=7, max_length=64)
        for name in ("pretrain", "finetune")
    )
    return TrainConfig(
        mix=mix, base=base, output=output, stages=stages, loss="qwen3", temperature=0.5,
        dtype="float32", parallel="fsdp", threads=1, checkpoint_steps=2,
    )  # fmt: skip


def read_by_the_first_alone(run: loop._Run) -> Any:
    """The first process removes the checkpoint when it has exported; a slower one finds nothing."""
    raise AssertionError(f"process {rank()} reads the last checkpoint")


def train_killed(config: TrainConfig) -> None:
    """Train, die after three steps, and train again."""
    step, seen = loop._Run._step, []

    def die(run: loop._Run, *arguments: Any) -> dict[str, Any]:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(1)
        return step(run, *arguments)

    loop._Run._step = die  # type: ignore[method-assign]
    with contextlib.suppress(KeyboardInterrupt):
        train(config)
    loop._Run._step = step  # type: ignore[method-assign]
    train(config)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group():
        found = {}
        for kind in (*KINDS, MIXED):
            for case in CASES:
                found |= gradients(kind, case)
        if rank() == 0:
            save_file(found, sys.argv[1])
        else:
            loop._Run.whole_model = read_by_the_first_alone  # type: ignore[method-assign]
        train_killed(sharded(*sys.argv[2:]))
