"""Save and resume the state of a training run: one safetensors file, written whole or not at all.

The file before it is kept, for the day that a disk loses half of one. A file holds the weights, the
moments of AdamW, and as JSON metadata the position in the batch plan. All tensors are kept as they
are, so a resumed run equals an uninterrupted one bit for bit on CPU. Size: three times the fp32
weights. Sharded tensors are put together for the file, one after the other, so any number of
processes can resume it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from datagen.schema import UserError
from trainer.distributed import rank

_WEIGHT, _MOMENT = "model.", "optimizer."


def save_checkpoint(
    path: Path, state: dict[str, Any], *, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> None:
    """Write weights, optimiser and `state` (JSON) to `path`; all processes must call it."""
    tensors = {}
    for name, parameter in model.named_parameters():
        parts = {f"{_WEIGHT}{name}": parameter.detach()}
        for key, value in optimizer.state.get(parameter, {}).items():
            parts[f"{_MOMENT}{key}.{name}"] = value
        for part, tensor in parts.items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if rank() == 0:
                tensors[part] = whole.cpu().contiguous()  # together they are more than a GPU holds
    if rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary, metadata={"state": json.dumps(state)})
        if path.is_file():
            path.replace(before(path))
        temporary.replace(path)


def before(path: Path) -> Path:
    """Where the checkpoint before this one is kept."""
    return path.with_suffix(".before.safetensors")


def newest(path: Path) -> Path:
    """The checkpoint to resume at: this one, or the one before where this one is gone."""
    return path if path.is_file() or not before(path).is_file() else before(path)


def read_state(path: Path) -> dict[str, Any] | None:
    """The JSON state of a checkpoint; None where there is none, UserError where it is cut."""
    if not path.is_file():
        return None
    kept = before(path).is_file()
    then = "resume at the one before" if kept else "train from the beginning"
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["state"])
    except SafetensorError as error:
        raise UserError(
            found=f"{path} is no whole checkpoint: {error}",
            expected="a file as it was written",
            do=f"delete that file and run the same command to {then}, or copy it again",
        ) from error


def load_checkpoint(
    path: Path, *, model: PreTrainedModel, optimizer: torch.optim.Optimizer | None
) -> None:
    """Put the weights of a checkpoint into a model, and the moments into its optimiser if given."""
    parameters = dict(model.named_parameters())
    with safe_open(path, "pt", device=str(model.device)) as file, torch.no_grad():
        for name in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
            if name.startswith(_WEIGHT):
                parameter = parameters[name.removeprefix(_WEIGHT)]
                parameter.copy_(_like(file.get_tensor(name), parameter))
            elif optimizer is not None:
                key, _, owner = name.removeprefix(_MOMENT).partition(".")
                parameter = parameters[owner]
                optimizer.state[parameter][key] = _like(file.get_tensor(name), parameter)


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """The tensor sharded as the parameter is; counters of steps are whole on each process."""
    if isinstance(parameter, DTensor) and tensor.ndim:
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor
