"""A decoder of two layers with a byte-level tokenizer, made in code, and small task folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from trainer.export import export_model
from trainer.prompts import PROMPTS

LINES = [
    "Instruct: Given a question, retrieve passages that answer the question.\nQuery: ",
    "the dog barks at the cat, the cat sleeps on the mat",
    "Mars has two moons; der Mond der Erde; la lune de la terre",
]


def tiny_tokenizer() -> Any:
    """Byte-level BPE like SmolLM2's: no token is added in front of or behind a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>", "<pad>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", padding_side="right"
    )


def tiny_model(*, seed: int = 0, width: int = 32, dtype: str = "float32") -> Any:
    """A random bidirectional Llama of two layers."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        is_causal=False,
        use_cache=False,
    )
    return LlamaModel(config).to(getattr(torch, dtype)).eval()


def tiny_export(
    folder: Path,
    *,
    seed: int = 0,
    prompts: Mapping[str, str] = PROMPTS,
    card: Mapping[str, Any] | None = None,
    **model: Any,
) -> str:
    """An exported model folder; another seed gives other weights."""
    export_model(
        tiny_model(seed=seed, **model),
        tiny_tokenizer(),
        str(folder),
        max_length=64,
        prompts=prompts,
        card=card,
    )
    return str(folder)


def write_task(
    folder: Path, kind: str, tables: Mapping[str, Mapping[str, Sequence]], **head: Any
) -> str:
    """A task folder named like its folder, with the given tables (column -> values)."""
    import json

    folder.mkdir(parents=True)
    fields = {"name": folder.name, "type": kind, "languages": ["eng_Latn"], "licence": "CC0-1.0"}
    (folder / "task.json").write_text(json.dumps({**fields, "instruction": "Find it", **head}))
    for name, columns in tables.items():
        pl.DataFrame(columns).write_parquet(folder / f"{name}.parquet")
    return str(folder)
