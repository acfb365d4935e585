"""Write an encoder as a sentence-transformers folder that needs no custom code, and check one.

The folder holds the stock architecture with `is_causal: false` (read by transformers >= 5.2,
sentence-transformers and vLLM) and `use_bidirectional_attention: true` (text-embeddings-inference),
mean pooling over all tokens, instruction included, and normalisation. Older transformers load the
same files as a causal model without a word, so the folder carries golden vectors: two texts and the
start of their vectors, made by the encoder that was exported; `check_golden` compares them.

A prompt is put in front of the text as it stands, so `prompt + text` must be the string that
training tokenised. `datagen.schema.format_query` ends in `Query: ` with one blank; the prompts keep
that blank. It would be in the way only if the prompt's tokens were left out of the mean, and they
are not.
"""

import contextlib
import copy
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datagen.schema import UserError

GOLDEN = "golden.json"
GOLDEN_TEXTS = (
    ("query", "How many moons does Mars have?"),
    (
        "document",
        "Mars\nTwo small moons, Phobos and Deimos, orbit the planet; 2 lunes, zwei Monde, 两颗。",
    ),
)
GOLDEN_VALUES = 8
# Largest difference of a value between machines; a causal model differs by ten times that.
GOLDEN_TOLERANCE = {"float32": 1e-3}
GOLDEN_TOLERANCE_LOW_PRECISION = 1e-2
_LIBRARIES = ("torch", "transformers", "sentence-transformers")


def export_model(
    model: Any,
    tokenizer: Any,
    output: str,
    *,
    max_length: int,
    prompts: Mapping[str, str],
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write the encoder to `output`, whole or not at all; texts are cut at `max_length` tokens.

    `prompts` must have `query` and `document`; further names are mteb's (`Retrieval-query`).
    `card` (base_model, licence, mix, stages) goes into README.md.
    Replaces an earlier export; raises UserError when `output` holds anything else.
    """
    missing = [name for name in ("query", "document") if name not in prompts]
    if missing:
        raise UserError(
            found=f"prompts without {' and '.join(missing)}",
            expected="a prompt (possibly empty) for query and document",
            do="add them to the prompts",
        )
    model.config.is_causal = bool(getattr(model.config, "is_causal", False))
    model.config.use_cache = False
    with new_folder(output) as folder:
        model.save_pretrained(folder)
        _save_tokenizer(tokenizer, folder, max_length=max_length)
        causal = model.config.is_causal
        edit_json(folder / "config.json", use_bidirectional_attention=not causal)
        _write_modules(folder, width=model.config.hidden_size, max_length=max_length)
        settings = {
            "model_type": "SentenceTransformer",
            "__version__": {name: version(name) for name in _LIBRARIES},
            "prompts": dict(prompts),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        }
        write_json(folder / "config_sentence_transformers.json", settings)
        vectors = _embed(model, tokenizer, _golden_inputs(prompts), max_length=max_length)
        dtype = str(model.dtype).removeprefix("torch.")
        write_json(folder / GOLDEN, _golden_record(vectors, dtype=dtype))
        (folder / "README.md").write_text(
            model_card(card or {}, max_length=max_length, causal=causal), encoding="utf-8"
        )


def export_folder(
    model: str,
    output: str,
    *,
    max_length: int,
    dtype: str | None = None,
    licence: str | None = None,
) -> float:
    """Export a transformers folder; returns the golden difference of what was written."""
    import torch

    from trainer.encoder import load_encoder
    from trainer.prompts import PROMPTS

    if Path(output).exists() and any_entry(Path(output)):
        raise UserError(
            found=f"{output} exists",
            expected="a new or empty folder",
            do="choose another --output",
        )
    encoder, tokenizer = load_encoder(model, dtype=getattr(torch, dtype or _saved_dtype(model)))
    prompts = _saved_prompts(Path(model)) or PROMPTS
    card = {"base_model": Path(model).name, "licence": licence}
    export_model(encoder, tokenizer, output, max_length=max_length, prompts=prompts, card=card)
    return check_golden(output)


def _saved_dtype(model: str) -> str:
    """The dtype a configuration names: `dtype`, or `torch_dtype` before transformers 5."""
    path = Path(model) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return config.get("dtype") or config.get("torch_dtype") or "float32"


def _saved_prompts(model: Path) -> dict[str, str]:
    """The prompts of a sentence-transformers folder; none of a plain one."""
    path = model / "config_sentence_transformers.json"
    prompts = (
        json.loads(path.read_text(encoding="utf-8")).get("prompts", {}) if path.is_file() else {}
    )
    return prompts if {"query", "document"} <= prompts.keys() else {}


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
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


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


def _write_modules(folder: Path, *, width: int, max_length: int) -> None:
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
    pooling = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": False,
        "include_prompt": True,
    }
    for path, _ in names[1:]:
        (folder / path).mkdir()
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "2_Normalize" / "config.json", {})


def _golden_inputs(prompts: Mapping[str, str]) -> list[str]:
    return [prompts[name] + text for name, text in GOLDEN_TEXTS]


def _embed(model: Any, tokenizer: Any, texts: Sequence[str], *, max_length: int) -> Any:
    """Normalised vectors [B, D] of one padded batch, by the trainer's own encoder."""
    import torch

    from trainer.encoder import embed, tokenize

    was_training = model.training
    model.eval()
    with torch.no_grad():
        ids = tokenize(tokenizer, texts, max_length=max_length)
        pooled = embed(model, ids, pad_id=tokenizer.pad_token_id)
    model.train(was_training)
    return torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()


def _golden_record(vectors: Any, *, dtype: str) -> dict[str, Any]:
    return {
        "texts": [
            {
                "prompt_name": name,
                "text": text,
                "first_values": [round(float(x), 7) for x in vector[:GOLDEN_VALUES]],
                "norm": round(float((vector.astype("float64") ** 2).sum() ** 0.5), 6),
            }
            for (name, text), vector in zip(GOLDEN_TEXTS, vectors, strict=True)
        ],
        "dtype": dtype,
        "versions": {name: version(name) for name in _LIBRARIES},
    }


def _load(folder: str) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(folder, trust_remote_code=False, local_files_only=True)


def _encode_golden(model: Any) -> Any:
    """Vectors [2, D] of the golden texts by sentence-transformers, in one padded batch."""
    texts = [model.prompts[name] + text for name, text in GOLDEN_TEXTS]
    return model.encode(texts, prompt="", convert_to_numpy=True, show_progress_bar=False)


def write_golden(folder: str) -> None:
    """Golden vectors of a finished sentence-transformers folder, made by loading it."""
    model = _load(folder)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    vectors = _encode_golden(model)
    write_json(Path(folder) / GOLDEN, _golden_record(vectors.astype("float32"), dtype=dtype))


def check_golden(folder: str) -> float:
    """Load a folder and compare its golden vectors; returns the largest difference of a value.

    Raises UserError when they differ: an old transformers, a broken kernel, or changed weights.
    """
    path = Path(folder) / GOLDEN
    if not path.is_file():
        raise UserError(
            found=f"no {GOLDEN} in {folder}",
            expected="a model that was exported or merged here",
            do="export it again with: trainer export",
        )
    record = json.loads(path.read_text(encoding="utf-8"))
    vectors = _encode_golden(_load(folder)).astype("float64")
    difference = 0.0
    for golden, vector in zip(record["texts"], vectors, strict=True):
        values = [*golden["first_values"], golden["norm"]]
        found = [*vector[: len(golden["first_values"])], float((vector**2).sum() ** 0.5)]
        difference = max(difference, *(abs(a - b) for a, b in zip(values, found, strict=True)))
    tolerance = GOLDEN_TOLERANCE.get(record["dtype"], GOLDEN_TOLERANCE_LOW_PRECISION)
    if not difference <= tolerance:
        made = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        raise UserError(
            found=f"{folder}: a golden vector differs by {difference:.2e}",
            expected=f"at most {tolerance:.0e}, as made with {made}",
            do="use transformers >= 5.2, or copy the folder again",
        )
    return difference


def model_card(card: Mapping[str, Any], *, max_length: int, causal: bool) -> str:
    """README.md of a model: what it is, what it was made from, how to load it."""
    head = ["library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    if card.get("licence"):
        head.append(f"license: {str(card['licence']).lower()}")
    attention = "causal" if causal else "bidirectional"
    facts = {
        "base model": card.get("base_model", "not stated"),
        "licence of the base model": card.get("licence", "not stated"),
        "training mix (digest)": card.get("mix", "none"),
        "attention": f"{attention}, mean pooling, unit length",
        "longest text": f"{max_length} tokens",
        "needs": "transformers >= 5.2 (older versions load it as a causal model, with no warning)",
    }
    facts |= {
        str(key): value
        for key, value in card.items()
        if key not in ("base_model", "licence", "mix", "stages") and isinstance(value, str | int)
    }
    stages = [_stage_line(stage) for stage in card.get("stages", ())]
    return "\n".join(
        ["---", *head, "---", "", "# Text-embedding model", ""]
        + [f"- {key}: {value}" for key, value in facts.items()]
        + (["", "## Training stages", "", *stages] if stages else [])
        + ["", "## Use", "", _USE]
    )


def _stage_line(stage: Mapping[str, Any]) -> str:
    return "- " + ", ".join(f"{key} {value}" for key, value in stage.items())


_USE = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")  # no custom code
queries = model.encode_query(["How many moons does Mars have?"])
documents = model.encode_document(["Mars has two moons, Phobos and Deimos."])
model.similarity(queries, documents)
```

Queries carry the instruction of the prompt `query`; for another task put
`Instruct: {instruction}\\nQuery: ` in front of the text. `golden.json` holds two vectors to compare
a loaded model with.
"""
