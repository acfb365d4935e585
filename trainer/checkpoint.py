"""Save and resume the state of a training run: one safetensors file, written whole or not at all.

It holds the weights, the moments of AdamW, and as JSON metadata the position in the batch plan. All
tensors are kept as they are, so a resumed run equals an uninterrupted one bit for bit on CPU. Size:
three times the fp32 weights.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

_WEIGHT, _MOMENT = "model.", "optimizer."


def save_checkpoint(
    path: Path, state: dict[str, Any], *, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> None:
    """Write weights, optimiser and `state` (JSON) to `path`."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"{_WEIGHT}{name}"] = parameter.detach().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{_MOMENT}{key}.{name}"] = value.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"state": json.dumps(state)})
    temporary.replace(path)


def read_state(path: Path) -> dict[str, Any] | None:
    """The JSON state of a checkpoint; None where there is none."""
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["state"])


def load_checkpoint(
    path: Path, *, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> None:
    """Put the weights and moments of a checkpoint into a model and its optimiser."""
    parameters = dict(model.named_parameters())
    with safe_open(path, "pt", device=str(model.device)) as file, torch.no_grad():
        for name in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
            if name.startswith(_WEIGHT):
                parameters[name.removeprefix(_WEIGHT)].copy_(file.get_tensor(name))
            else:
                key, _, owner = name.removeprefix(_MOMENT).partition(".")
                optimizer.state[parameters[owner]][key] = file.get_tensor(name)
