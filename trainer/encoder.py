"""Load a decoder as a bidirectional encoder, check that it is one, and embed texts with it.

transformers >= 5.2 makes every decoder bidirectional through one configuration key,
`is_causal=False`, which is saved with the model. Older versions ignore it without a word, and some
attention kernels ignore it in padded batches only; `self_check` finds both before training starts.

An embedding is the mean of the last hidden states over all real tokens, instruction included, as in
llama-embed-nemotron-8b (arXiv 2511.07025). Texts are padded on the right, to their own pass only.

Shape suffixes: B texts, T tokens, S tokens of all passes in a row, D embedding width.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from datagen.schema import UserError

MINIMUM_TRANSFORMERS = Version("5.2.0")


def load_encoder(
    path: str,
    *,
    causal: bool = False,
    attn_implementation: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    layers: int | None = None,
) -> tuple[PreTrainedModel, Any]:
    """The model and tokenizer of a folder; bidirectional unless `causal`, without language head.

    `layers` keeps the first ones only. Raises UserError for an old transformers, a folder that is
    no model, a number of layers that it lacks, and weights that the folder does not hold.
    """
    _check_version()
    config = _configuration(path, layers)
    config.is_causal = causal
    config.use_cache = False  # else each forward builds a cache, which shortened models crash in
    with _quiet():
        model, report = AutoModel.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            local_files_only=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            found=f"{path} lacks {len(missing)} weights of {type(model).__name__}: {missing[:3]}",
            expected="a folder with all weights of its model",
            do="download or unpack the model again",
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _check_version() -> None:
    if Version(transformers.__version__) < MINIMUM_TRANSFORMERS:
        raise UserError(
            found=f"transformers {transformers.__version__}",
            expected=f"at least {MINIMUM_TRANSFORMERS}: older ones ignore is_causal=False",
            do="pip install 'transformers>=5.2'",
        )


def _configuration(path: str, layers: int | None) -> PretrainedConfig:
    if not (Path(path) / "config.json").is_file():
        raise UserError(
            found=f"no config.json in {path}",
            expected="the folder of a transformers model",
            do="check the path of the model",
        )
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    if layers is None:
        return config
    total = config.num_hidden_layers
    if not 0 < layers <= total:
        raise UserError(
            found=f"{layers} layers asked for",
            expected=f"1 to {total}, the layers of {path}",
            do="change `layers`",
            exit_status=2,
        )
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):  # transformers 5 refuses a list of another length
        config.layer_types = config.layer_types[:layers]
    return config


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no report of the head and the layers that are left out on purpose."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def mean_pool(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean of the hidden states over real tokens: [B, D] in fp32, not normalised."""
    weights_BT1 = mask_BT.unsqueeze(-1).to(torch.float32)
    return (hidden_BTD.float() * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1.0)


def tokenize(tokenizer: Any, texts: Sequence[str], *, max_length: int) -> list[list[int]]:
    """Token ids of each text, special tokens included, cut at `max_length`; never an empty list."""
    rows = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    return [row or [tokenizer.pad_token_id] for row in rows]


def pad(ids: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, T] of texts padded on the right to the longest."""
    width = max(len(row) for row in ids)
    tokens_BT = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in ids])
    lengths_B1 = torch.tensor([[len(row)] for row in ids])
    return tokens_BT, (torch.arange(width) < lengths_B1).long()


def hidden_states(
    model: PreTrainedModel, ids: Sequence[Sequence[int]], *, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Last hidden states [B, T, D] and mask [B, T] of one padded pass."""
    tokens_BT, mask_BT = (part.to(model.device) for part in pad(ids, pad_id=pad_id))
    return model(input_ids=tokens_BT, attention_mask=mask_BT).last_hidden_state, mask_BT


def embed(model: PreTrainedModel, ids: Sequence[Sequence[int]], *, pad_id: int) -> Tensor:
    """Mean-pooled embeddings [B, D] of one padded pass; keeps the graph where grad is enabled."""
    return mean_pool(*hidden_states(model, ids, pad_id=pad_id))


def embed_sorted(
    model: PreTrainedModel,
    ids: Sequence[Sequence[int]],
    *,
    pad_id: int,
    pass_tokens: int,
    residuals: torch.dtype | None = None,
) -> Tensor:
    """Embeddings [B, D] of texts sorted by length, in passes of at most `pass_tokens` tokens.

    Under autocast, `residuals` sets the dtype of the residual stream, which is fp32 otherwise.
    The caller sorts, and keeps that order: putting rows back with an index would make the backward
    pass add with atomics, in an order that differs from run to run. The token table is read once
    for all passes, since each backward of a lookup writes a gradient as large as the table.
    """
    runs = cut_passes([len(row) for row in ids], pass_tokens)
    padded = [pad(ids[begin:end], pad_id=pad_id) for begin, end in runs]
    flat_S = torch.cat([tokens_BT.flatten() for tokens_BT, _ in padded])
    table = model.get_input_embeddings()
    states_SD = table(flat_S.to(model.device)).to(residuals or table.weight.dtype)
    embeddings = []
    for part_SD, (_, mask) in zip(
        states_SD.split([mask.numel() for _, mask in padded]), padded, strict=True
    ):
        mask_BT = mask.to(model.device)
        inputs_BTD = part_SD.view(*mask_BT.shape, -1)
        hidden_BTD = model(inputs_embeds=inputs_BTD, attention_mask=mask_BT).last_hidden_state
        embeddings.append(mean_pool(hidden_BTD, mask_BT))
    return torch.cat(embeddings)


def cut_passes(lengths: Sequence[int], pass_tokens: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of runs whose padded size, rows x longest, stays within `pass_tokens`."""
    begin = longest = 0
    for i, length in enumerate(lengths):
        if i > begin and max(longest, length) * (i - begin + 1) > pass_tokens:
            yield begin, i
            begin, longest = i, 0
        longest = max(longest, length)
    if lengths:
        yield begin, len(lengths)


@torch.no_grad()
def self_check(model: PreTrainedModel, tokenizer: Any, *, causal: bool = False) -> None:
    """Raise UserError unless later tokens are seen (`causal`: unseen) and padding is not.

    Both are tried on padded batches: a kernel that forgets `is_causal` may do so only there.
    """
    _check_vocabulary(model, tokenizer)
    was_training = model.training
    model.eval()
    special = set(tokenizer.all_special_ids)
    a, b, c, d = [i for i in range(len(tokenizer)) if i not in special][:4]
    companion = [d] * 6

    def first_state(row: list[int], other: list[int]) -> Tensor:
        states_BTD, _ = hidden_states(model, [row, other], pad_id=tokenizer.pad_token_id)
        return states_BTD[0, 0].float()

    reference = first_state([a, b, c], companion)
    scale = reference.norm()
    moved = ((reference - first_state([a, b, d], companion)).norm() / scale).item()
    drift = ((reference - first_state([a, b, c], companion * 2)).norm() / scale).item()
    model.train(was_training)
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    if (moved > 1e-5) == causal:
        raise UserError(
            found=f"{type(model).__name__}: a later token moves the first state by {moved:.1e}",
            expected="no effect (causal)" if causal else "an effect (bidirectional)",
            do="use another attn_implementation, or a model that honours config.is_causal",
        )
    if not drift <= tolerance:
        raise UserError(
            found=f"{type(model).__name__}: padding moves a state by {drift:.1e}",
            expected=f"at most {tolerance:.0e}",
            do="use another attn_implementation",
        )


def _check_vocabulary(model: PreTrainedModel, tokenizer: Any) -> None:
    rows = int(model.config.vocab_size)
    if len(tokenizer) > rows:
        raise UserError(
            found=f"a tokenizer of {len(tokenizer)} tokens with a table of {rows} embeddings",
            expected="a tokenizer that belongs to the model",
            do="take both from the same folder",
        )
    if tokenizer.pad_token_id is None:
        raise UserError(
            found="a tokenizer with neither a padding nor an end token",
            expected="a padding token",
            do="set pad_token in tokenizer_config.json",
        )
