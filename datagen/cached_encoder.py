"""An encoder in front of the cache of vectors (datagen.embedding_cache)."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from datagen.embedding_cache import EmbeddingCache, space_key
from datagen.encode import Encoder
from datagen.encoder_model import EncoderModel, encoder_model, inspect_encoder
from datagen.vectors import STORED

FLUSH_S = 2.0


class CachedEncoder:
    """An encoder that looks up what is there; the model is loaded when a text is missing."""

    def __init__(
        self,
        encoder: str | EncoderModel,
        *,
        root: str,
        max_length: int | None = None,
        dtype: str = "float32",
        flush_s: float = FLUSH_S,
        **options: Any,
    ):
        self._model = encoder_model(encoder)
        self._root, self._flush_s = root, flush_s
        self._max_length, self._dtype, self._options = max_length, dtype, options
        self._info = inspect_encoder(self._model)
        self._encoder: Encoder | None = None
        self._spaces: dict[tuple[str, str], EmbeddingCache] = {}
        self.found = self.encoded = 0  # texts, since it was made

    def space(self, prompt: str, stored: str) -> EmbeddingCache:
        """The space of the cache for a prompt."""
        if stored not in STORED:
            raise ValueError(f"stored {stored!r} is none of {', '.join(STORED)}")
        if (prompt, stored) not in self._spaces:
            key = space_key(
                self._info,
                prompt=prompt,
                max_length=self._max_length,
                dtype=self._dtype,
                stored=stored,
            )
            self._spaces[prompt, stored] = EmbeddingCache(self._root, key)
        return self._spaces[prompt, stored]

    def merge(self, prompts: Iterable[str], stored: str) -> None:
        """Put the small segments of the spaces of some prompts together."""
        for prompt in sorted(set(prompts)):
            self.space(prompt, stored).merge()

    def encode(
        self, texts: Sequence[str], *, prompt: str = "", stored: Literal["float16", "float32"]
    ) -> np.ndarray:
        """As `Encoder.encode`; what is encoded is in the cache within `flush_s` seconds."""
        numbers: dict[str, int] = {}
        copies = [numbers.setdefault(text, len(numbers)) for text in texts]
        unique = list(numbers)
        if not unique:
            return np.empty((0, 0), dtype=stored)
        space = self.space(prompt, stored)
        there, known = space.find(unique)
        missing = np.flatnonzero(~there)
        self.found, self.encoded = self.found + len(known), self.encoded + len(missing)
        if not len(missing):
            return known[copies]
        fresh = self._encode([unique[i] for i in missing], prompt, stored, space)
        vectors = np.empty((len(unique), fresh.shape[1]), dtype=stored)
        if len(known):
            vectors[there] = known
        vectors[missing] = fresh
        return vectors[copies]

    def _encode(
        self, texts: list[str], prompt: str, stored: str, space: EmbeddingCache
    ) -> np.ndarray:
        if self._encoder is None:
            self._encoder = Encoder(
                self._model, max_length=self._max_length, dtype=self._dtype, **self._options
            )
        done: list[tuple[np.ndarray, np.ndarray]] = []
        kept, flushed = 0, time.monotonic()
        for rows, vectors in self._encoder.batches([prompt + text for text in texts]):
            done.append((rows, vectors.astype(stored)))
            if time.monotonic() - flushed >= self._flush_s:
                self._keep(texts, done[kept:], space)
                kept, flushed = len(done), time.monotonic()
        self._keep(texts, done[kept:], space)
        out = np.empty((len(texts), done[0][1].shape[1]), dtype=stored)
        out[np.concatenate([rows for rows, _ in done])] = np.concatenate([v for _, v in done])
        return out

    def _keep(
        self,
        texts: Sequence[str],
        done: Sequence[tuple[np.ndarray, np.ndarray]],
        space: EmbeddingCache,
    ) -> None:
        if done:
            rows = np.sort(np.concatenate([rows for rows, _ in done]))
            order = np.argsort(np.concatenate([rows for rows, _ in done]), kind="stable")
            vectors = np.concatenate([vectors for _, vectors in done])[order]
            space.add([texts[i] for i in rows], vectors)
