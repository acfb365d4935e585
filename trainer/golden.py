"""Golden vectors: what a model folder must give wherever it is loaded.

Older transformers load a bidirectional decoder as a causal one without a word, and a kernel may
forget the flag in padded batches only. So a folder carries `golden.json`: a query and a document of
different lengths, and the start and norm of their vectors, made in one padded batch by the encoder
that was exported.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from datagen.schema import UserError

GOLDEN = "golden.json"
TEXTS = (
    ("query", "How many moons does Mars have?"),
    (
        "document",
        "Mars\nTwo small moons, Phobos and Deimos, orbit it; 2 lunes, zwei Monde, 两颗。",
    ),
)
VALUES = 8
# Largest difference of a value between machines; a causal model differs by ten times that.
TOLERANCE = {"float32": 1e-3}
TOLERANCE_LOW_PRECISION = 1e-2
_LIBRARIES = ("torch", "transformers", "sentence-transformers")


def golden_vectors(
    model: Any,
    tokenizer: Any,
    prompts: Mapping[str, str],
    *,
    max_length: int,
    pooling: str = "mean",
    pool_instruction: bool = True,
) -> Any:
    """Unit vectors [2, D] of the golden texts by the trainer's own encoder, in one padded batch."""
    import torch

    from trainer.encoder import embed, marked, tokenize

    was_training = model.training
    model.eval()
    with torch.no_grad():
        texts = [prompts[name] + text for name, text in TEXTS]
        ids = tokenize(tokenizer, texts, max_length=max_length)
        if not pool_instruction:
            ids = marked(tokenizer, texts, ids, max_length=max_length)
        pooled = embed(model, ids, pad_id=tokenizer.pad_token_id, pooling=pooling)
    model.train(was_training)
    return torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()


def save_golden(folder: Path, vectors: Any, *, dtype: Any) -> None:
    """Write golden.json; `dtype` is that of the weights."""
    record = {
        "texts": [
            {
                "prompt_name": name,
                "text": text,
                "first_values": [round(float(x), 7) for x in vector[:VALUES]],
                "norm": round(float((vector.astype("float64") ** 2).sum() ** 0.5), 6),
            }
            for (name, text), vector in zip(TEXTS, vectors, strict=True)
        ],
        "dtype": str(dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in _LIBRARIES},
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / GOLDEN).write_text(text + "\n", encoding="utf-8")


def write_golden(folder: str) -> None:
    """Golden vectors of a finished sentence-transformers folder, made by loading it."""
    model, vectors = _load_and_encode(folder)
    save_golden(Path(folder), vectors, dtype=next(model.parameters()).dtype)


def check_golden(folder: str) -> float:
    """Load a folder and compare its golden vectors; returns the largest difference of a value.

    Raises UserError when they differ: an old transformers, a broken kernel, or changed weights.
    """
    _read(folder)
    _, vectors = _load_and_encode(folder)
    return compare_golden(folder, vectors)


def golden_texts(folder: str) -> list[str]:
    """The golden texts of a folder with their prompts in front; older folders have none."""
    saved = Path(folder) / "config_sentence_transformers.json"
    settings = json.loads(saved.read_text(encoding="utf-8")) if saved.is_file() else {}
    prompts = settings.get("prompts") or {}
    return [(prompts.get(name) or "") + text for name, text in TEXTS]


def compare_golden(folder: str, vectors: Any) -> float:
    """The largest difference of a value between these vectors and the golden ones, or UserError."""
    record = _read(folder)
    difference = 0.0
    for golden, vector in zip(record["texts"], vectors.astype("float64"), strict=True):
        values = [*golden["first_values"], golden["norm"]]
        found = [*vector[: len(golden["first_values"])], float((vector**2).sum() ** 0.5)]
        difference = max(difference, *(abs(a - b) for a, b in zip(values, found, strict=True)))
    tolerance = TOLERANCE.get(record["dtype"], TOLERANCE_LOW_PRECISION)
    if not difference <= tolerance:
        made = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        raise UserError(
            found=f"{folder}: a golden vector differs by {difference:.2e}",
            expected=f"at most {tolerance:.0e}, as made with {made}",
            do="use transformers >= 5.2, or copy the folder again",
        )
    return difference


def _read(folder: str) -> Any:
    path = Path(folder) / GOLDEN
    if not path.is_file():
        raise UserError(
            found=f"no {GOLDEN} in {folder}",
            expected="a model that was exported or merged here",
            do="export it again with: trainer export",
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _load_and_encode(folder: str) -> tuple[Any, Any]:
    """The model as sentence-transformers loads it, and its vectors [2, D], in one padded batch."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, trust_remote_code=False, local_files_only=True)
    how: dict[str, Any] = {"convert_to_numpy": True, "show_progress_bar": False}
    if all(getattr(module, "include_prompt", True) for module in model):
        vectors = model.encode(golden_texts(folder), prompt="", **how)
    else:  # the length of a prompt is that of a whole batch
        prompts = [model.prompts.get(name) or "" for name, _ in TEXTS]
        rows = zip(TEXTS, prompts, strict=True)
        vectors = np.stack([model.encode(text, prompt=p, **how) for (_, text), p in rows])
    return model, vectors.astype("float32")
