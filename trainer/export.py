"""Write an encoder as a sentence-transformers folder that needs no custom code, and check one.

The folder holds the stock architecture with `is_causal: false` (read by transformers >= 5.2,
sentence-transformers and vLLM) and `use_bidirectional_attention: true` (text-embeddings-inference),
pooling (a mean has all tokens, or all but the prompt's) and normalisation. Older transformers load
the same files as a causal model without a word: golden.py has the means to notice.

A prompt is put in front of the text as it stands, so `prompt + text` must be the string that
training tokenised. `datagen.schema.format_query` ends in `Query: ` with one blank; the prompts keep
that blank.
"""

import contextlib
import copy
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datagen.schema import UserError
from trainer.card import read_card, write_card
from trainer.golden import GOLDEN, check_golden, golden_vectors, save_golden
from trainer.model_folder import (
    refuse_cut,
    saved_causal,
    saved_dtype,
    saved_pooling,
    saved_prompts,
)

_LIBRARIES = ("torch", "transformers", "sentence-transformers")


def export_model(
    model: Any,
    tokenizer: Any,
    output: str,
    *,
    max_length: int,
    prompts: Mapping[str, str],
    card: Mapping[str, Any] | None = None,
    pooling: str = "mean",
    pool_instruction: bool = True,
) -> None:
    """Write the encoder to `output`, whole or not at all; texts are cut at `max_length` tokens.

    `prompts` must have `query` and `document`; further names are mteb's (`Retrieval-query`).
    `card` is what README.md says of its making (see `write_card`). Without `pool_instruction` the
    tokens of a prompt stay out of the mean.
    Replaces an earlier export; raises UserError when `output` holds anything else.
    """
    from trainer.configuration import saved_keys

    missing = [name for name in ("query", "document") if name not in prompts]
    if missing:
        raise UserError(
            found=f"prompts without {' and '.join(missing)}",
            expected="a prompt (possibly empty) for query and document",
            do="add them to the prompts",
        )
    model.config.use_cache = False
    with new_folder(output) as folder:
        model.save_pretrained(folder)
        _save_tokenizer(tokenizer, folder, max_length=max_length)
        edit_json(folder / "config.json", **saved_keys(model.config))
        width = model.config.hidden_size
        how: dict[str, Any] = {"pooling": pooling, "pool_instruction": pool_instruction}
        _write_modules(folder, width=width, max_length=max_length, **how)
        settings = {
            "model_type": "SentenceTransformer",
            "__version__": {name: version(name) for name in _LIBRARIES},
            "prompts": dict(prompts),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        }
        write_json(folder / "config_sentence_transformers.json", settings)
        vectors = golden_vectors(model, tokenizer, prompts, max_length=max_length, **how)
        save_golden(folder, vectors, dtype=model.dtype)
        write_card(folder, card or {})


def export_folder(
    model: str,
    output: str,
    *,
    max_length: int,
    dtype: str | None = None,
    licence: str | None = None,
    onnx: bool = False,
) -> float:
    """Export a transformers folder; returns the golden difference of what was written.

    With `onnx` the folder also holds the model as ONNX, whose golden vectors are compared as well.
    """
    import torch

    from trainer.encoder import load_encoder
    from trainer.onnx import check_onnx_libraries, export_onnx

    if Path(output).exists() and any_entry(Path(output)):
        raise UserError(
            found=f"{output} exists",
            expected="a new or empty folder",
            do="choose another --output",
        )
    refuse_cut(model)
    if onnx:
        check_onnx_libraries()
    kept = getattr(torch, dtype or saved_dtype(model))
    encoder, tokenizer = load_encoder(model, dtype=kept, causal=saved_causal(model))
    card = {"base_model": Path(model).name, **read_card(model)}
    card |= {"licence": licence} if licence else {}
    how: dict[str, Any] = {"prompts": saved_prompts(model), "card": card, **saved_pooling(model)}
    export_model(encoder, tokenizer, output, max_length=max_length, **how)
    difference = check_golden(output)
    return max(difference, export_onnx(output)) if onnx else difference


@contextlib.contextmanager
def new_folder(output: str) -> Iterator[Path]:
    """A temporary folder beside `output` that takes its place when the block ends without error.

    What stands there is replaced only if it is empty or an export (it has golden vectors).
    """
    target = Path(output)
    if target.exists() and not (target / GOLDEN).is_file() and any_entry(target):
        raise UserError(
            found=f"{output} exists and is not a model that was exported here",
            expected="a new or empty folder, or an earlier export",
            do="choose another --output",
        )
    mark = uuid.uuid4().hex[:8]
    temporary = target.with_name(f".{target.name}.{mark}.tmp")
    replaced = target.with_name(f".{target.name}.{mark}.old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            os.replace(target, replaced)
        os.replace(temporary, target)
    finally:
        if replaced.exists() and not target.exists():
            os.replace(replaced, target)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def kept_folder(output: str, step: int) -> Path:
    """Where a run keeps its checkpoint of an optimiser step, counted over all stages."""
    return Path(f"{output.rstrip('/')}-steps") / f"step-{step}"


def kept_steps(output: str) -> dict[int, str]:
    """The checkpoints that a run kept, by step."""
    found = kept_folder(output, 0).parent.glob("step-*")
    return dict(sorted((int(place.name.split("-")[1]), str(place)) for place in found))


def any_entry(path: Path) -> bool:
    """Whether a path is a file, or a folder with something in it."""
    return path.is_file() or next(path.iterdir(), None) is not None


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Set top-level keys of a JSON file."""
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


def _save_tokenizer(tokenizer: Any, folder: Path, *, max_length: int) -> None:
    saved = copy.deepcopy(tokenizer)
    saved.model_max_length = max_length
    backend = getattr(saved, "backend_tokenizer", None)
    if backend is not None:  # what the last call set must not depend on who called last
        backend.no_truncation()
        backend.no_padding()
    saved.save_pretrained(folder)


def _write_modules(
    folder: Path, *, width: int, max_length: int, pooling: str, pool_instruction: bool
) -> None:
    """modules.json and what it names, as sentence-transformers 5 and 6 both read it."""
    names = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(names)
    ]
    write_json(folder / "modules.json", modules)
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False}
    )
    how = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": pooling == "last",
        "include_prompt": pool_instruction,
    }
    for path, _ in names[1:]:
        (folder / path).mkdir()
    write_json(folder / "1_Pooling" / "config.json", how)
    write_json(folder / "2_Normalize" / "config.json", {})
