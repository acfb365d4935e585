"""The optimiser, and its learning rate from step to step."""

import math

import torch
from transformers import PreTrainedModel

from trainer.train import StageConfig, TrainConfig


def learning_rate(config: TrainConfig, stage: StageConfig, *, step: int, steps: int) -> float:
    """Linear warm-up, then a line or a cosine down to `smallest_rate` of the peak."""
    warmup = warmup_steps(stage, steps)
    if step < warmup:
        return stage.learning_rate * (step + 1) / warmup
    left = (steps - step) / max(1, steps - warmup)
    if config.schedule == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    return stage.learning_rate * (config.smallest_rate + (1 - config.smallest_rate) * left)


def warmup_steps(stage: StageConfig, steps: int) -> int:
    """The configured warm-up, but at most a tenth of the steps."""
    return min(stage.warmup_steps, steps // 10)


def new_optimizer(model: PreTrainedModel, weight_decay: float) -> torch.optim.AdamW:
    """AdamW without decay on norms and biases."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    vectors = [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, fused=True)
