"""Packed forward: texts one behind the other in a single row of tokens, none of them padding.

The attention function `packed` is registered with transformers like any other kernel and gets the
borders of the texts as an argument of the forward pass, so that each text sees itself alone.
Automatic detection from restarting positions is no help: transformers skips it where `is_causal` is
False, and texts see each other without a word.

On a GPU in half precision the kernel is flash-attn's, where installed, or torch's varlen attention.
Elsewhere texts of equal length go through attention together, block by block of the diagonal, which
needs no mask; sorted by length there are few such blocks. On CPU that is 15% faster than padded
passes over sorted texts, which waste little either, since matrix products are larger.

Shape suffixes: T tokens of all texts, B texts, H heads, G key heads, C width of a head, L length of
a text, D width of the model.
"""

import functools
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from datagen.schema import UserError
from trainer.configuration import window_reach

PACKED = "packed"  # the name of the attention function
MATH_LENGTH = 600  # up to here plain matrix products beat the fused kernel of the CPU, backward
POOLINGS = ("mean", "last", "cls")


@dataclass(frozen=True)
class Segments:
    """Borders of the texts in a packed row."""

    lengths: tuple[int, ...]
    borders: Tensor  # int32 [texts + 1], on the device

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(texts, length) of neighbours of equal length."""
        return [(len(list(group)), length) for length, group in groupby(self.lengths)]


def segments(lengths: Sequence[int], device: torch.device) -> Segments:
    """The borders of texts of these lengths."""
    borders = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(device, torch.int32)
    return Segments(tuple(lengths), borders)


class PackedEncoder(torch.nn.Module):
    """Texts in, embeddings out: what processes share and what one backward pass goes through.

    `mixed` computes in bf16 with weights and sums in fp32: updates of 1e-5 are lost in bf16.
    """

    def __init__(self, model: PreTrainedModel, *, pooling: str = "mean", mixed: bool = False):
        super().__init__()
        model.set_attn_implementation(PACKED)
        self.model, self.pooling, self.mixed = model, pooling, mixed

    def forward(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Embeddings [B, D] in fp32, not normalised; best sorted by length."""
        device = next(self.model.parameters()).device
        skipped, ids = unmarked(ids)
        parts = segments([len(row) for row in ids], device)
        tokens_T = torch.tensor([token for row in ids for token in row], device=device)
        places = torch.cat([torch.arange(length) for length in parts.lengths])
        states_TD = self.model.get_input_embeddings()(tokens_T)
        if self.mixed:  # autocast leaves residuals in fp32; in bf16 a step takes a sixth less time
            states_TD = states_TD.to(torch.bfloat16)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.mixed):
            states_1TD = self.model(
                inputs_embeds=states_TD[None],
                position_ids=(places + _offset(self.model)).to(device)[None],
                segments=parts,
            ).last_hidden_state
        return pool(states_1TD[0], parts, self.pooling, skipped=skipped)


def unmarked(ids: Sequence[Sequence[int]]) -> tuple[list[int], list[Sequence[int]]]:
    """How many first tokens of each text stay out of its mean, and the ids without that mark.

    The mark is a negative number in front of the ids, so that it goes wherever they go.
    """
    skipped = [-row[0] if row[0] < 0 else 0 for row in ids]
    return skipped, [row[1:] if row[0] < 0 else row for row in ids]


def pool(
    states_TD: Tensor, parts: Segments, pooling: str, *, skipped: Sequence[int] = ()
) -> Tensor:
    """One vector for each text [B, D] in fp32: mean of its states, the last, or the first.

    A mean leaves the first `skipped` tokens of each text out; of a text without others it is 0.
    """
    if pooling == "mean" and any(skipped):
        lengths_B = parts.borders.diff()
        first_B = parts.borders[:-1] + torch.tensor(skipped, device=states_TD.device)
        place_T = torch.arange(len(states_TD), device=states_TD.device)
        kept_T = place_T >= first_B.repeat_interleave(lengths_B)
        sums_BD = torch.segment_reduce(
            states_TD.float() * kept_T[:, None], "sum", offsets=parts.borders.long()
        )
        return sums_BD / (parts.borders[1:] - first_B).clamp(min=1)[:, None]
    if pooling == "mean":
        sums_BD = torch.segment_reduce(states_TD.float(), "sum", offsets=parts.borders.long())
        return sums_BD / parts.borders.diff()[:, None]
    at_B = parts.borders[1:] - 1 if pooling == "last" else parts.borders[:-1]
    return F.embedding(at_B, states_TD.float())


def _offset(model: PreTrainedModel) -> int:
    """The position of a first token: RoBERTa counts from behind the number of the padding token."""
    embeddings: Any = getattr(model, "embeddings", None)
    counted = hasattr(embeddings, "create_position_ids_from_input_ids")
    return embeddings.padding_idx + 1 if counted else 0


@torch.compiler.disable  # else each batch is compiled again, for its lengths
def attend(
    module: torch.nn.Module,
    query_1HTC: Tensor,
    key_1GTC: Tensor,
    value_1GTC: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of each text to itself [1, T, H, C], in the form that transformers expects.

    UserError for scores that are capped (Gemma 2) and for sinks (GPT-OSS): no kernel here has them.
    """
    if softcap is not None or s_aux is not None:
        _refuse(type(module).__name__)
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    # What kernels get differs by one among models; the configuration has the reach of the mask.
    reach = None if sliding_window is None else window_reach(module.config, causal=causal)
    half = query_1HTC.dtype in (torch.bfloat16, torch.float16)
    kernel = _varlen() if query_1HTC.is_cuda and half and not dropout else None
    if kernel is not None:
        far = -1 if reach is None else reach
        window = (far, 0 if causal else far)
        parts = [x[0].transpose(0, 1) for x in (query_1HTC, key_1GTC, value_1GTC)]
        out_THC = kernel(*parts, segments, scaling, window)
        return out_THC[None], None
    sizes = [texts * length for texts, length in segments.runs]
    split = zip(
        *(x[0].split(sizes, dim=1) for x in (query_1HTC, key_1GTC, value_1GTC)), strict=True
    )
    blocks = []
    for (texts, length), (query, key, value) in zip(segments.runs, split, strict=True):
        q, k, v = (x.unflatten(1, (texts, length)).transpose(0, 1) for x in (query, key, value))
        mask_LL = _mask(length, causal, reach, query.device)
        out = _block(q, k, v, mask_LL, scaling=scaling, dropout=dropout)
        blocks.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(blocks)[None], None


def _refuse(name: str) -> NoReturn:
    raise UserError(
        found=f"{name}, which caps its scores or has sinks",
        expected="attention by a softmax over products alone",
        do="take a model of another family: Llama, Qwen, Mistral, SmolLM, Gemma 3",
    )


def _block(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask_LL: Tensor | None,
    *,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """Attention [texts, H, L, C] of texts of one length."""
    length, width = query.shape[-2:]
    if length > MATH_LENGTH or query.is_cuda or dropout:
        return F.scaled_dot_product_attention(
            query, key, value, mask_LL, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.transpose(-1, -2) * (width**-0.5 if scaling is None else scaling)
    if mask_LL is not None:
        scores = scores.masked_fill(~mask_LL, float("-inf"))
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


def _mask(length: int, causal: bool, reach: int | None, device: torch.device) -> Tensor | None:
    """What a token may see [L, L]; None where that is the whole text."""
    if not causal and (reach is None or reach >= length):
        return None
    distance_LL = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    mask_LL = distance_LL >= 0 if causal else torch.ones_like(distance_LL, dtype=torch.bool)
    return mask_LL if reach is None else mask_LL & (distance_LL.abs() <= reach)


@functools.cache
def _varlen() -> Callable[..., Tensor] | None:
    """flash-attn's kernel where it is installed, else torch's: both take the same borders."""
    if importlib.util.find_spec("flash_attn"):
        from flash_attn import flash_attn_varlen_func

        def flash(query, key, value, parts, scaling, window):  # type: ignore[no-untyped-def]
            longest = max(parts.lengths)
            return flash_attn_varlen_func(
                query, key, value, parts.borders, parts.borders, longest, longest,
                softmax_scale=scaling, window_size=window,
            )  # fmt: skip

        return flash
    if not importlib.util.find_spec("torch.nn.attention.varlen"):
        return None
    from torch.nn.attention.varlen import varlen_attn

    if not {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys():
        return None  # an early version

    def varlen(query, key, value, parts, scaling, window):  # type: ignore[no-untyped-def]
        longest = max(parts.lengths)
        return varlen_attn(
            query, key, value, parts.borders, parts.borders, longest, longest,
            scale=scaling, window_size=window, enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip

    return varlen


AttentionInterface.register(PACKED, attend)
AttentionMaskInterface.register(PACKED, lambda *_, **__: None)
