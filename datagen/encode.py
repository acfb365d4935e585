"""Embeddings of texts, the same on any number of workers: texts in, float32 vectors out.

An `Encoder` is any of `datagen.encoder_model`; sentence-transformers runs it here, or vLLM
(datagen.encode_vllm). A plain transformers model is given the modules that its folder lacks:
pooling and normalisation as stated.

On a CPU a batch holds texts of one token count, at most `batch_tokens` tokens: nothing is computed
for padding, and the bits of a vector depend on its text alone. (The number of rows of a product
changes no bit there, the padding of a row does: of MiniLM's float32 vectors of 200 tokens, the last
one.) So what is kept of an earlier run is what this run would compute, whatever else it encodes and
on however many workers; `threads` batches run side by side (datagen.threads). On a GPU small
batches cost time, and a product's kernel depends on its shape whatever is done: there a batch holds
texts of similar token counts, and vectors of different runs agree to rounding, not to the bit.

Cost: one forward pass a text; MiniLM on one core: 245 questions or 22 paragraphs a second in
float32, 700 or 58 in bfloat16 where the CPU has AVX512-BF16.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from datagen.encoder_model import (
    EncoderModel,
    check_stated,
    encoder_model,
    has_modules,
    refuse_unsafe,
)
from datagen.packed_linear import pack_linears
from datagen.schema import UserError
from datagen.threads import side_by_side

CODE_VERSION = 2  # raised when the same model and text give another vector
_POOLING = {"mean": "mean", "cls": "cls", "last": "lasttoken"}
_LARGEST = 65504.0  # of float16, which vectors may be kept in


class Engine(Protocol):
    """What runs a model."""

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(row numbers, float32 vectors) of the texts, each row once, as they are done."""
        ...


class Encodes(Protocol):
    """An encoder, or one in front of the cache of vectors."""

    def encode(
        self, texts: Sequence[str], *, prompt: str = "", stored: Literal["float16", "float32"]
    ) -> np.ndarray:
        """Vectors [texts, width] of `prompt + text`."""
        ...


class Encoder:
    """A model that lives in one process."""

    def __init__(
        self,
        encoder: str | EncoderModel,
        *,
        max_length: int | None = None,
        dtype: str = "float32",
        threads: int = 1,
        batch_tokens: int = 2048,
        device: str | None = None,
    ):
        model = encoder_model(encoder)
        folder = Path(model.folder())
        refuse_unsafe(folder)
        check_stated(model, folder)
        options = {"max_length": max_length, "dtype": dtype, "threads": threads}
        options |= {"batch_tokens": batch_tokens, "device": device}
        self._engine = _engine(model, folder, options)

    def encode(
        self, texts: Sequence[str], *, prompt: str = "", stored: Literal["float16", "float32"]
    ) -> np.ndarray:
        """Vectors [texts, width] of `prompt + text`; equal texts are encoded once."""
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
        """(row numbers, float32 vectors) of the texts, batch by batch as they are done."""
        for rows, vectors in self._engine.batches(texts):
            _refuse_broken(vectors, [texts[i] for i in rows])
            yield rows, vectors


def _engine(model: EncoderModel, folder: Path, options: dict[str, Any]) -> Engine:
    if model.engine == "vllm":
        from datagen.encode_vllm import VllmEngine

        return VllmEngine(model, folder, **options)
    return TorchEngine(model, folder, **options)


class TorchEngine:
    """sentence-transformers with one model."""

    def __init__(
        self,
        model: EncoderModel,
        folder: Path,
        *,
        max_length: int | None,
        dtype: str,
        threads: int,
        batch_tokens: int,
        device: str | None,
    ):
        import torch
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # of loading weights; steps log their own progress
        self._torch, self._batch_tokens, self._threads = torch, batch_tokens, threads
        self._unit = model.normalise is not False
        try:
            self._model = _load(
                model,
                str(folder),
                device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
                weights={"dtype": getattr(torch, dtype), "use_safetensors": True},
            ).eval()
        except (OSError, ValueError) as error:
            raise UserError(
                found=f"{model.place} does not load: {error}",
                expected="a model folder with weights, tokenizer and configuration",
                do="copy the model folder again, or choose another",
            ) from error
        if max_length is not None:
            self._model.max_seq_length = max_length
        pack_linears(self._model)

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(row numbers, float32 vectors) of the texts, batch by batch as they are done."""
        counts = self._token_counts(list(texts))
        one_length = self._model.device.type == "cpu"
        batches = token_batches(counts, self._batch_tokens, one_length=one_length)
        # A tokenizer is not made for several threads.
        features = [self._model.preprocess([texts[i] for i in batch]) for batch in batches]
        with side_by_side(self._threads) as run:
            yield from zip(batches, run(self._forward, features), strict=True)

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
            if self._unit:
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            return vectors.cpu().numpy()


def _load(model: EncoderModel, folder: str, *, device: str, weights: dict[str, Any]) -> Any:
    from sentence_transformers import SentenceTransformer

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if has_modules(Path(folder)):
        return SentenceTransformer(folder, device=device, model_kwargs=weights, **local)
    assert model.pooling is not None
    said = logging.getLogger("sentence_transformers")
    level = said.level
    said.setLevel(logging.ERROR)  # it warns of a pooling of its own choice, which is not used
    try:
        guessed = SentenceTransformer(folder, device=device, model_kwargs=weights, **local)
    finally:
        said.setLevel(level)
    width = guessed[1].pooling_output_dimension
    pooling = type(guessed[1])(width, pooling_mode=_POOLING[model.pooling])
    return SentenceTransformer(modules=[guessed[0], pooling], device=device)


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
    broken = np.flatnonzero(~(np.abs(rows) <= _LARGEST).all(axis=1))
    if len(broken):
        raise UserError(
            found=f"the encoder gave numbers that are not finite for {len(broken)} texts, "
            f"the first: {texts[broken[0]][:200]!r}",
            expected="a finite vector for every text",
            do="encode in float32 or bfloat16 (float16 overflows), or check the model's weights",
        )
