"""Load a decoder or an encoder, make it bidirectional, check that it is, embed texts with padding.

transformers >= 5.2 makes every decoder bidirectional through its configuration, which is saved with
the model (trainer/configuration.py). Older versions ignore that without a word, and some attention
kernels ignore it in padded batches only; `self_check` finds both before training starts.

An embedding is the mean of the last hidden states over all real tokens, instruction included, as in
llama-embed-nemotron-8b (arXiv 2511.07025), or the state of the last or the first token. Training
does not pad (trainer/packed.py); `check_packed` makes sure that it gives the same embeddings.

Shape suffixes: B texts, T tokens, D embedding width.
"""

import contextlib
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from packaging.version import Version
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import logging as transformers_logging

from datagen.schema import UserError
from trainer.configuration import first_line, read_configuration
from trainer.packed import PackedEncoder, unmarked

# As datagen.schema.format_query writes it.
_INSTRUCTION = re.compile(r"Instruct: .*?\nQuery: ", re.DOTALL)
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
    config = read_configuration(path, causal=causal, layers=layers)
    options = {
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        **_without_pooler(config),
    }
    with _quiet():
        try:
            model, report = AutoModel.from_pretrained(
                path, config=config, output_loading_info=True, local_files_only=True, **options
            )
        # Weights that are absent or cut, or an attention that the kernel does not compute.
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(
                found=f"{path} does not load: {first_line(error)}",
                expected=f"safetensors that transformers runs with {attn_implementation}",
                do="copy the folder again, or take another model",
            ) from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            found=f"{path} lacks {len(missing)} weights of {type(model).__name__}: {missing[:3]}",
            expected="a folder with all weights of its model",
            do="download or unpack the model again",
        )
    return model, load_tokenizer(path)


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a folder, which pads on the right; UserError where there is none."""
    with _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        # Libraries raise what they meet: a file that is absent, empty, or not what it says.
        except Exception as error:
            raise UserError(
                found=f"no tokenizer in {path}: {first_line(error)}",
                expected="tokenizer.json, or the files that it is made of",
                do="copy it from the folder of the model that this one was made from",
            ) from error
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _without_pooler(config: PretrainedConfig) -> dict[str, bool]:
    """BERT's pooler has weights that no embedding here uses, and that many folders lack."""
    known = MODEL_MAPPING.get(type(config), None)
    arguments = inspect.signature(known.__init__).parameters if inspect.isclass(known) else ()
    return {"add_pooling_layer": False} if "add_pooling_layer" in arguments else {}


def _check_version() -> None:
    if Version(transformers.__version__) < MINIMUM_TRANSFORMERS:
        raise UserError(
            found=f"transformers {transformers.__version__}",
            expected=f"at least {MINIMUM_TRANSFORMERS}: older ones ignore is_causal=False",
            do="pip install 'transformers>=5.2'",
        )


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


def marked(
    tokenizer: Any, texts: Sequence[str], ids: Sequence[list[int]], *, max_length: int
) -> list[list[int]]:
    """The ids with a mark in front where a text has an instruction: its tokens stay out of a mean.

    How many is what sentence-transformers counts for `include_prompt: false`: the tokens of the
    instruction alone, without a special one at its end. A tokenizer that joins the instruction's
    last blank to the first word then leaves out that token, too; attention sees all of them.
    """
    heads = [match[0] if (match := _INSTRUCTION.match(text)) else "" for text in texts]
    known = list(dict.fromkeys(head for head in heads if head))
    alone = tokenize(tokenizer, known, max_length=max_length) if known else []
    special = set(tokenizer.all_special_ids)
    counts = {h: len(t) - (t[-1] in special) for h, t in zip(known, alone, strict=True)}
    return [[-counts[head], *row] if head else row for head, row in zip(heads, ids, strict=True)]


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


def embed(
    model: PreTrainedModel, ids: Sequence[Sequence[int]], *, pad_id: int, pooling: str = "mean"
) -> Tensor:
    """Embeddings [B, D] of one padded pass; keeps the graph where grad is enabled."""
    skipped_B, plain = unmarked(ids)
    hidden_BTD, mask_BT = hidden_states(model, plain, pad_id=pad_id)
    if any(skipped_B):
        skipped_B1 = torch.tensor(skipped_B, device=mask_BT.device)[:, None]
        mask_BT = mask_BT * (torch.arange(mask_BT.shape[1], device=mask_BT.device) >= skipped_B1)
    return pooled(hidden_BTD, mask_BT, pooling)


def pooled(hidden_BTD: Tensor, mask_BT: Tensor, pooling: str) -> Tensor:
    """One vector for each text [B, D] in fp32: mean of its states, the last, or the first."""
    if pooling == "mean":
        return mean_pool(hidden_BTD, mask_BT)
    at_B = mask_BT.sum(1) - 1 if pooling == "last" else torch.zeros_like(mask_BT[:, 0])
    return hidden_BTD[torch.arange(len(at_B)), at_B].float()


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


@torch.no_grad()
def check_packed(model: PreTrainedModel, tokenizer: Any) -> PackedEncoder:
    """The model as a packed encoder; UserError unless it embeds like padded passes do."""
    special = set(tokenizer.all_special_ids)
    some = [i for i in range(len(tokenizer)) if i not in special][:7]
    ids = [some[:2], some[2:5], some[:5], some]
    was_training = model.training
    padded_BD = embed(model.eval(), ids, pad_id=tokenizer.pad_token_id)
    packed = PackedEncoder(model)
    difference = (padded_BD - packed(ids)).norm() / padded_BD.norm()
    model.train(was_training)
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    if not difference <= tolerance:
        raise UserError(
            found=f"{type(model).__name__}: packed texts differ from padded ones by "
            f"{difference:.1e}",
            expected=f"at most {tolerance:.0e}",
            do="use a model whose attention goes through transformers' attention interface",
        )
    return packed


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
