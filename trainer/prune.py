"""Prune a decoder to a smaller width and depth, as F2LLM-v2 makes its small models (arXiv
2603.19223, section 3): first layers, and the channels of the residual stream and of the MLPs whose
activations are largest on calibration texts. Heads stay as they are.

A channel's weight is its share of the energy (mean square) at the input of every norm, the norms
counting alike; a neuron's is its mean square at the input of its own down projection. A norm
divides by the root mean square over all channels, which is larger over those that stay: its weights
are scaled by the ratio measured, so channels that carried nothing go without a trace. What is lost
is for training to win back (distillation, stage 2). Cost: one forward pass over the texts.
"""

import contextlib
import copy
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datagen.schema import UserError
from trainer.card import read_card
from trainer.data import StageData
from trainer.encoder import embed, load_encoder, self_check, tokenize
from trainer.export import any_entry, export_model, write_json
from trainer.model_folder import (
    refuse_cut,
    saved_causal,
    saved_length,
    saved_pooling,
    saved_prompts,
)

log = logging.getLogger("embedmix")

RECORD = "prune.json"
_SIZE_NAMES = ("hidden", "mlp", "layers")
SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
PASS_TEXTS = 8
# Which side of a tensor is the residual stream; an MLP's own are cut on both sides.
_INPUTS = ("embed_tokens.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight")
_OUTPUTS = ("o_proj.weight", "o_proj.bias", "down_proj.bias")
_LAYER = re.compile(r"^layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is left: width of the residual stream, neurons of each MLP, layers."""

    hidden: int
    mlp: int
    layers: int


# F2LLM-v2's, of Qwen3-0.6B (hidden 1024, MLP 3072, 28 layers).
SIZES = {
    "80M": Size(hidden=320, mlp=2048, layers=8),
    "160M": Size(hidden=640, mlp=1536, layers=9),
    "330M": Size(hidden=896, mlp=2560, layers=16),
}


@dataclass
class Energy:
    """Sums of squares by channel: at the input of every norm and of every down projection."""

    norms: dict[str, Tensor] = field(default_factory=dict)
    neurons: dict[str, Tensor] = field(default_factory=dict)

    def channels(self) -> Tensor:
        """The share of each channel of the residual stream, averaged over the norms."""
        return torch.stack([e / e.sum().clamp(min=1e-300) for e in self.norms.values()]).mean(0)


def prune(
    model: str,
    output: str,
    *,
    texts: Sequence[str] = (),
    hidden: int | None = None,
    mlp: int | None = None,
    layers: int | None = None,
) -> dict[str, Any]:
    """Write the pruned model to `output` as an exported folder; returns what prune.json says.

    `texts` are for calibration of a width; any architecture can lose its last layers without.
    Attention, pooling, prompts and length stay those of an exported `model`. UserError for no size
    at all, sizes that the model has not, a width that cannot be cut, and an output that is there.
    """
    if Path(output).exists() and any_entry(Path(output)):
        raise UserError(
            found=f"{output} exists", expected="a new or empty folder", do="choose another --output"
        )
    narrower = hidden is not None or mlp is not None
    if not narrower and layers is None:
        raise UserError(
            found=f"no size for what is left of {model}",
            expected="channels, neurons or layers that stay",
            do="name --size, or any of --hidden, --mlp and --layers",
            exit_status=2,
        )
    refuse_cut(model)
    causal = saved_causal(model)
    pruned, tokenizer = load_encoder(model, layers=layers, causal=causal)
    length = saved_length(model)
    record: dict[str, Any] = {"model": model}
    if narrower:
        _check(model, pruned.config, hidden=hidden, mlp=mlp, texts=texts)
        ids = tokenize(tokenizer, texts, max_length=length)
        energy = measure(pruned, ids, pad_id=tokenizer.pad_token_id)
        pruned, kept = cut(pruned, energy, hidden=hidden, mlp=mlp)
        record |= {"texts": len(texts), "energy_kept": kept}
    self_check(pruned, tokenizer, causal=causal)
    kept_size = {"hidden": pruned.config.hidden_size, "layers": pruned.config.num_hidden_layers}
    record |= kept_size | ({"mlp": pruned.config.intermediate_size} if narrower else {})
    about = "pruned to " + ", ".join(f"{n} {record[n]}" for n in _SIZE_NAMES if n in record)
    card = {"base_model": Path(model).name, **read_card(model), "about": about}
    how: dict[str, Any] = {"prompts": saved_prompts(model), "card": card, **saved_pooling(model)}
    export_model(pruned, tokenizer, output, max_length=length, **how)
    write_json(Path(output) / RECORD, record)
    log.info("prune: %s", json.dumps(record))
    return record


def _check(
    model: str, config: Any, *, hidden: int | None, mlp: int | None, texts: Sequence[str]
) -> None:
    if config.model_type not in SUPPORTED:
        raise UserError(
            found=f"{model} is a {config.model_type}",
            expected="one of " + ", ".join(SUPPORTED) + " to make narrower",
            do="prune its depth alone: --layers",
        )
    sizes = ((hidden, config.hidden_size, "hidden"), (mlp, config.intermediate_size, "mlp"))
    for wanted, own, name in sizes:
        if wanted is not None and not 0 < wanted <= own:
            raise UserError(
                found=f"{name} {wanted}",
                expected=f"1 to {own}, that of {model}",
                do=f"change --{name}",
                exit_status=2,
            )
    heads = config.num_attention_heads
    if hidden is not None and hidden % heads:
        near = max(hidden // heads, 1) * heads
        raise UserError(
            found=f"hidden {hidden}",
            expected=f"a multiple of the {heads} attention heads of {model}",
            do=f"take --hidden {near}, or {near + heads}",
            exit_status=2,
        )
    if not texts:
        raise UserError(
            found="a width to cut to, and no texts to calibrate with",
            expected="some hundred texts like those that the model will see",
            do="name a mix with rows: --mix",
            exit_status=2,
        )


@torch.no_grad()
def measure(model: Any, ids: Sequence[list[int]], *, pad_id: int) -> Energy:
    """The energy of channels and neurons over texts, in passes of texts of one length.

    No text is padded: a padded position would count like a token.
    """
    energy = Energy()
    ordered = sorted(ids, key=len)
    with _watched(model, energy):
        start = 0
        while start < len(ordered):
            end = start
            while end < min(len(ordered), start + PASS_TEXTS) and (
                len(ordered[end]) == len(ordered[start])
            ):
                end += 1
            embed(model.eval(), ordered[start:end], pad_id=pad_id)
            start = end
    return energy


@contextlib.contextmanager
def _watched(model: Any, energy: Energy) -> Iterator[None]:
    """Adds up squares while the model runs."""

    def adding(sums: dict[str, Tensor], name: str) -> Any:
        def hook(_: Any, inputs: tuple[Tensor, ...]) -> None:
            squares = inputs[0].double().square().flatten(0, -2).sum(0)
            sums[name] = sums[name] + squares if name in sums else squares

        return hook

    handles = []
    for name, module in model.named_modules():
        if name.endswith("down_proj"):
            handles.append(module.register_forward_pre_hook(adding(energy.neurons, name)))
        elif name.endswith("norm") and not name.endswith(("q_norm", "k_norm")):
            handles.append(module.register_forward_pre_hook(adding(energy.norms, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def cut(
    model: Any, energy: Energy, *, hidden: int | None, mlp: int | None
) -> tuple[Any, dict[str, float]]:
    """A model of the channels and neurons with the most energy, and the share that they carry."""
    old = model.config
    channels = _largest(energy.channels(), hidden or old.hidden_size)
    neurons = {
        name: _largest(sums, mlp or old.intermediate_size) for name, sums in energy.neurons.items()
    }
    config = copy.deepcopy(old)
    config.hidden_size, config.intermediate_size = len(channels), mlp or old.intermediate_size
    config.head_dim = getattr(old, "head_dim", None) or old.hidden_size // old.num_attention_heads
    pruned = type(model)._from_config(config, dtype=model.dtype)
    weights = {}
    for name, tensor in model.state_dict().items():
        weights[name] = _cut_tensor(name, tensor, channels, neurons, energy).contiguous()
    pruned.load_state_dict(weights, strict=True)
    shares = [
        float(sums[neurons[name]].sum() / sums.sum()) for name, sums in energy.neurons.items()
    ]
    kept = {
        "hidden": round(float(energy.channels()[channels].sum()), 4),
        "mlp": round(sum(shares) / len(shares), 4),
    }
    return pruned.eval(), kept


def _largest(values: Tensor, count: int) -> Tensor:
    """Positions of the largest values, ascending; of equal ones the first."""
    order = torch.argsort(values, descending=True, stable=True)
    return order[:count].sort().values


def _cut_tensor(
    name: str, tensor: Tensor, channels: Tensor, neurons: dict[str, Tensor], energy: Energy
) -> Tensor:
    layer = _LAYER.match(name)
    own = neurons[f"layers.{layer[1]}.mlp.down_proj"] if layer else None
    module = name.rpartition(".")[0]
    if module in energy.norms:
        squares = energy.norms[module]
        ratio = (squares[channels].mean() / squares.mean().clamp(min=1e-300)).sqrt()
        return (tensor[channels].double() * ratio).to(tensor.dtype)
    if name.endswith(("gate_proj.weight", "up_proj.weight")):
        return tensor[own][:, channels]
    if name.endswith("down_proj.weight"):
        return tensor[channels][:, own]
    if name.endswith(("gate_proj.bias", "up_proj.bias")):
        return tensor[own]
    if name.endswith(_INPUTS):
        return tensor[:, channels]
    if name.endswith(_OUTPUTS):
        return tensor[channels]
    return tensor


def calibration_texts(mix: str, stage: str, *, rows: int) -> list[str]:
    """Queries and documents of evenly spaced rows of a mix, as the encoder sees them."""
    data = StageData(mix, stage, negatives=1)
    return [text for example in data.sample(rows) for text in example.texts]
