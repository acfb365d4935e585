"""How the two papers trained, as data: stages and options by name.

`nemotron`: llama-embed-nemotron-8b (arXiv 2511.07025, Table 8). `f2llm-SIZE`: the eight sizes of
F2LLM-v2 (arXiv 2603.19223, Table 3) with what its released configuration adds (1,024 tokens,
500 steps of warm-up, cosine to 1e-7, seven negatives drawn of 24). Its AdamW has betas (0.9, 0.98),
ours PyTorch's (0.9, 0.999). The paper states one rate for both stages. Sizes up to 1.7B are
distilled: add `--distill embedding --teacher MODEL`; those below 0.6B are pruned (`trainer prune`)
and see the second stage only.
"""

from dataclasses import dataclass, field
from typing import Any

from trainer.train import FINETUNE, PRETRAIN, StageConfig

SMALLEST_RATE = 1e-7
# Size -> learning rate, epochs.
F2LLM = {
    "80M": (4e-5, 4),
    "160M": (3e-5, 3),
    "330M": (2e-5, 3),
    "0.6B": (1e-5, 2),
    "1.7B": (9e-6, 2),
    "4B": (7e-6, 2),
    "8B": (6e-6, 2),
    "14B": (5e-6, 2),
}
PRUNED = ("80M", "160M", "330M")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Stages by name, and options of TrainConfig that differ from its defaults."""

    stages: dict[str, StageConfig]
    options: dict[str, Any] = field(default_factory=dict)


def _f2llm(size: str) -> Recipe:
    rate, epochs = F2LLM[size]
    names = ("finetune",) if size in PRUNED else ("pretrain", "finetune")
    stages = {
        name: StageConfig(
            name=name,
            negatives=7,
            learning_rate=rate,
            batch_size=512,
            epochs=epochs,
            warmup_steps=500,
            max_length=1024,
            draw=True,
        )
        for name in names
    }
    options = {
        "loss": "f2llm",
        "temperature": 0.05,
        "matryoshka": True,
        "pooling": "last",
        "causal": True,
        "schedule": "cosine",
        "smallest_rate": SMALLEST_RATE / rate,
    }
    return Recipe(stages=stages, options=options)


RECIPES = {
    "nemotron": Recipe(stages={"pretrain": PRETRAIN, "finetune": FINETUNE}),
    **{f"f2llm-{size}": _f2llm(size) for size in F2LLM},
}
