"""Embeddings of texts by any Sentence Transformers folder, the same on any number of workers.

On a CPU a batch holds texts of one token count, at most `batch_tokens` tokens: nothing is computed
for padding, and the bits of a vector depend on its text alone. (The number of rows of a product
changes no bit there, the padding of a row does: of MiniLM's float32 vectors of 200 tokens, the last
one.) So what is kept of an earlier run is what this run would compute, whatever else it encodes and
on however many workers; `threads` batches run side by side (datagen.threads). On a GPU small
batches cost time, and a product's kernel depends on its shape whatever is done: there a batch holds
texts of similar token counts, and vectors of different runs agree to rounding, not to the bit.
Vectors have unit length.

No code of a model folder runs: its modules must be Sentence Transformers' own, its weights
safetensors. Cost: one forward pass a text; MiniLM on one core: 245 questions or 22 paragraphs a
second in float32, 700 or 58 in bfloat16 where the CPU has AVX512-BF16.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datagen.packed_linear import pack_linears
from datagen.schema import UserError
from datagen.threads import side_by_side

PRECISIONS = ("float32", "bfloat16", "float16")
# What decides the vectors; notes, images and exports to other runtimes do not.
_DECISIVE = {".safetensors", ".json", ".txt", ".model", ".jinja"}
_MODEL_FILES = ("modules.json", "config.json")
CODE_VERSION = 2  # raised when the same model and text give another vector


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """What a model folder says of itself: sha256 over its files, and its prompts by name."""

    digest: str
    prompts: dict[str, str]


def inspect_encoder(path: str) -> EncoderInfo:
    """Read and check a model folder without loading it; UserError when it cannot be used."""
    folder = Path(path)
    if not any((folder / name).is_file() for name in _MODEL_FILES):
        raise UserError(
            found=f"{path} has no {' or '.join(_MODEL_FILES)}"
            if folder.is_dir()
            else f"no model folder {path}",
            expected="a Sentence Transformers or transformers model folder",
            do="check the path of the encoder",
            exit_status=2,
        )
    _refuse_unsafe(folder)
    prompts = _read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    return EncoderInfo(digest=_digest(folder), prompts=dict(prompts))


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            found=f"{path} is not JSON: {error}",
            expected="the file of a model folder",
            do="copy the model folder again",
        ) from error


def _refuse_unsafe(folder: Path) -> None:
    modules = _read_json(folder / "modules.json") or []
    foreign = [m["type"] for m in modules if not m["type"].startswith("sentence_transformers.")]
    if foreign:
        raise UserError(
            found=f"{folder} asks to run code of its own: {', '.join(foreign)}",
            expected="modules of sentence_transformers only",
            do="choose a model that needs no remote code",
        )
    pickled = sorted(p.parent for p in folder.rglob("pytorch_model*.bin"))
    for place in pickled:
        if not any(place.glob("*.safetensors")):
            raise UserError(
                found=f"{place} has pickled weights only",
                expected="*.safetensors",
                do="convert the model to safetensors, or choose another",
            )


def _digest(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.suffix in _DECISIVE and p.is_file())
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return whole.hexdigest()


class Encoder:
    """A model that lives in one process."""

    def __init__(
        self,
        path: str,
        *,
        max_length: int | None = None,
        dtype: str = "float32",
        threads: int = 1,
        batch_tokens: int = 2048,
        device: str | None = None,
    ):
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # of loading weights; steps log their own progress
        inspect_encoder(path)
        self._torch, self._batch_tokens, self._threads = torch, batch_tokens, threads
        options = {"dtype": getattr(torch, dtype), "use_safetensors": True}
        try:
            self._model = SentenceTransformer(
                path,
                device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs=options,
            ).eval()
        except (OSError, ValueError) as error:
            raise UserError(
                found=f"{path} does not load: {error}",
                expected="a model folder with weights, tokenizer and configuration",
                do="copy the model folder again, or choose another",
            ) from error
        if max_length is not None:
            self._model.max_seq_length = max_length
        pack_linears(self._model)

    def encode(
        self, texts: Sequence[str], *, prompt: str = "", stored: Literal["float16", "float32"]
    ) -> np.ndarray:
        """Unit vectors [texts, width] of `prompt + text`; equal texts are encoded once."""
        numbers: dict[str, int] = {}
        copies = [numbers.setdefault(prompt + text, len(numbers)) for text in texts]
        unique = list(numbers)
        if not unique:
            return np.empty((0, 0), dtype=stored)
        parts = list(self.batches(unique))
        vectors = np.concatenate([vectors for _, vectors in parts])
        rows = np.empty(vectors.shape, dtype=stored)
        rows[np.concatenate([batch for batch, _ in parts])] = vectors
        return rows[copies]

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(row numbers, float32 unit vectors) of the texts, batch by batch as they are done."""
        counts = self._token_counts(list(texts))
        one_length = self._model.device.type == "cpu"
        batches = token_batches(counts, self._batch_tokens, one_length=one_length)
        # A tokenizer is not made for several threads.
        features = [self._model.preprocess([texts[i] for i in batch]) for batch in batches]
        with side_by_side(self._threads) as run:
            for batch, vectors in zip(batches, run(self._forward, features), strict=True):
                _refuse_broken(vectors, [texts[i] for i in batch])
                yield batch, vectors

    def _token_counts(self, texts: list[str]) -> list[int]:
        limit = self._model.max_seq_length
        tokens = self._model.tokenizer(texts, truncation=limit is not None, max_length=limit)
        return [len(ids) for ids in tokens["input_ids"]]

    def _forward(self, features: dict[str, Any]) -> np.ndarray:
        torch, model = self._torch, self._model
        with torch.inference_mode():
            inputs = {
                name: value.to(model.device) if isinstance(value, torch.Tensor) else value
                for name, value in features.items()
            }
            vectors = model(inputs)["sentence_embedding"].float()
            return torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy()


def token_batches(
    lengths: Sequence[int], batch_tokens: int, *, one_length: bool = False
) -> list[np.ndarray]:
    """Row numbers by ascending length, cut where rows x longest would exceed `batch_tokens`.

    With `one_length` also wherever the length changes.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        full = end == len(order) or (end + 1 - start) * lengths[order[end]] > batch_tokens
        if full or (one_length and lengths[order[end]] != lengths[order[start]]):
            batches.append(order[start:end])
            start = end
    return batches


def _refuse_broken(rows: np.ndarray, texts: Sequence[str]) -> None:
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(broken):
        raise UserError(
            found=f"the encoder gave numbers that are not finite for {len(broken)} texts, "
            f"the first: {texts[broken[0]][:200]!r}",
            expected="a finite vector for every text",
            do="encode in float32 or bfloat16 (float16 overflows), or check the model's weights",
        )
