"""What a model folder says of itself, read from its files, and whether these are whole.

A folder that was exported here has golden vectors; of a plain transformers folder pooling,
attention and prompts are not known, and are those that training starts with.
"""

import json
from pathlib import Path
from typing import Any

from datagen.schema import UserError
from trainer.golden import GOLDEN


def refuse_cut(model: str) -> None:
    """Raise UserError where a file of settings or weights is cut: libraries say it in tracebacks.

    Reads JSON files and the heads of safetensors files, whose sizes are in them.
    """
    from safetensors import SafetensorError, safe_open

    place = Path(model)
    for file in sorted([*place.glob("*.json"), *place.glob("*/*.json")]):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise _cut(file, error) from error
    for file in sorted(place.rglob("*.safetensors")):
        try:
            with safe_open(file, "np"):
                pass
        except SafetensorError as error:
            raise _cut(file, error) from error


def _cut(file: Path, error: Exception) -> UserError:
    return UserError(
        found=f"{file} is not whole: {error}",
        expected="a file as it was written",
        do="copy the folder again",
    )


def read_settings(model: str | Path, name: str) -> dict[str, Any]:
    """A JSON file of a model folder; empty where there is none."""
    path = Path(model) / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def saved_pooling(folder: str) -> dict[str, Any]:
    """`pooling` and `pool_instruction` of an export; a mean of all tokens for a plain folder."""
    path = Path(folder) / "1_Pooling" / "config.json"
    if not (Path(folder) / GOLDEN).is_file():
        return {"pooling": "mean", "pool_instruction": True}
    told = json.loads(path.read_text(encoding="utf-8"))
    named = {"mean_tokens": "mean", "lasttoken": "last", "cls_token": "cls"}
    pooling = next(ours for name, ours in named.items() if told[f"pooling_mode_{name}"])
    return {"pooling": pooling, "pool_instruction": told["include_prompt"]}


def saved_causal(folder: str) -> bool:
    """Whether an export was left causal; never so for a plain folder, which is made an encoder."""
    if not (Path(folder) / GOLDEN).is_file():
        return False
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return not config["use_bidirectional_attention"]


def saved_dtype(model: str) -> str:
    """The dtype a configuration names: `dtype`, or `torch_dtype` before transformers 5."""
    config = read_settings(model, "config.json")
    return config.get("dtype") or config.get("torch_dtype") or "float32"


def saved_prompts(model: str) -> dict[str, str]:
    """The prompts of a sentence-transformers folder; ours for a plain one."""
    from trainer.prompts import PROMPTS

    prompts = read_settings(model, "config_sentence_transformers.json").get("prompts", {})
    return prompts if {"query", "document"} <= prompts.keys() else PROMPTS


def saved_length(model: str) -> int:
    """The longest text of a sentence-transformers folder, in tokens; of a plain one 512, or as many
    as the model has positions."""
    config = read_settings(model, "config.json")
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    told = read_settings(model, "sentence_bert_config.json").get("max_seq_length")
    return told or min(512, positions or 512)
