"""What a training run takes, before anything runs: steps, tokens, memory, GPU-hours.

Rows and steps are those of the plan; tokens are measured on SAMPLED rows. Compute is counted as
MFU is (trainer/progress.py), at the bf16 rate of a GPU and a share of it that one expects to reach.
Memory is 16 bytes a parameter (fp32 weights, gradients and two moments) over the GPUs under fsdp,
and the activations of `micro_tokens` tokens: Korthikanti et al. 2022 (arXiv 2205.05198, equation 2)
without attention scores, which the kernels used here do not keep; their inputs only under gradient
checkpointing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModel

from trainer.configuration import read_configuration
from trainer.data import StageData
from trainer.encoder import load_tokenizer, tokenize
from trainer.progress import PEAK_FLOPS, token_flops
from trainer.train import StageConfig, TrainConfig

SAMPLED = 512
_STATE_BYTES = 16  # of a parameter
_ACTIVATION_BYTES = 34  # of a token, layer and channel
_KEPT_BYTES = 2  # the same under gradient checkpointing


def estimate(
    config: TrainConfig, *, gpus: int = 1, gpu: str = "H100", use: float = 0.4
) -> dict[str, Any]:
    """The plan of each stage, memory of a GPU in GiB, and hours; `use` is the MFU expected."""
    settings = read_configuration(config.base, causal=config.causal)
    tokenizer = load_tokenizer(config.base)
    with torch.device("meta"):
        model = AutoModel.from_config(settings)
    stages = [_stage(config, stage, model, tokenizer) for stage in config.stages]
    for stage in stages:
        hours = stage["flops"] / (PEAK_FLOPS[gpu] * use) / 3600
        stage |= {"gpu_hours": round(hours, 2), "hours": round(hours / gpus, 2)}
    parameters = sum(p.numel() for p in model.parameters())
    kept = _KEPT_BYTES if config.gradient_checkpointing else _ACTIVATION_BYTES
    activations = config.micro_tokens * settings.num_hidden_layers * settings.hidden_size * kept
    sharded = gpus if config.parallel == "fsdp" else 1
    memory = {
        "state": round(_STATE_BYTES * parameters / sharded / 2**30, 2),
        "activations": round(activations / 2**30, 2),
    }
    return {
        "parameters": parameters,
        "stages": stages,
        "gib_of_a_gpu": {**memory, "together": round(sum(memory.values()), 2)},
        "gpu_hours": round(sum(stage["gpu_hours"] for stage in stages), 2),
        "assumed": {"gpus": gpus, "gpu": gpu, "mfu": use},
    }


def _stage(config: TrainConfig, stage: StageConfig, model: Any, tokenizer: Any) -> dict[str, Any]:
    data = StageData(config.mix, stage.name, negatives=stage.negatives, draw=stage.draw)
    batches = data.plan(
        seed=config.seed, epoch=0, batch_size=stage.batch_size, max_rows=stage.max_rows
    )
    rows = sum(map(len, batches))
    lengths = _lengths(data, stage, tokenizer)
    tokens = sum(map(sum, lengths)) / len(lengths)
    flops = sum(token_flops(model, length=n) * n for row in lengths for n in row) / len(lengths)
    return {
        "stage": stage.name,
        "rows": rows,
        "steps": len(batches) * stage.epochs,
        "tokens_a_row": round(tokens, 1),
        "tokens": round(tokens * rows * stage.epochs),
        "flops": flops * rows * stage.epochs,
    }


def _lengths(data: StageData, stage: StageConfig, tokenizer: Any) -> Sequence[list[int]]:
    """Tokens of each text of a sample of rows."""
    return [
        [len(ids) for ids in tokenize(tokenizer, example.texts, max_length=stage.max_length)]
        for example in data.sample(SAMPLED)
    ]
