"""Vectors on disk: the shards of a step, read as one matrix, and several encoders' as one.

They are kept as Arrow lists of float16 or float32, in the order of the rows they stand for. Nothing
of the encoders is needed to read them.
"""

import mmap
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from datagen.schema import UserError
from datagen.store import BATCH_ROWS, Folder

STORED = {"float16": pa.float16(), "float32": pa.float32()}
_MAPPED_BYTES = 1 << 28  # read from disk before the pages are given back
_AROUND = 1 << 16  # Linux maps the 16 pages around one that is read


def embedding_schema(key: str, stored: str) -> pa.Schema:
    """The schema of embedding shards: the id of the text, and its vector."""
    vector = pa.field("embedding", pa.list_(STORED[stored]), nullable=False)
    return pa.schema([pa.field(key, pa.string(), nullable=False), vector])


def embedding_table(ids: pa.ChunkedArray, vectors: np.ndarray, schema: pa.Schema) -> pa.Table:
    """Rows of an embedding shard."""
    width = vectors.shape[1]
    offsets = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * np.int32(width))
    lists = pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1)))
    return pa.table([ids, lists], schema=schema)


class Embeddings:
    """All vectors of embedding shards: `shape`, and rows by [slice or array].

    Rows are numbered through the shards in order. Shards of a local folder are memory-mapped, and
    their pages given back as the search goes; of an object store the batches asked for are read.
    """

    def __init__(self, folder: Folder, shards: Sequence[str]):
        self._maps: list[mmap.mmap] = []
        self._batches: list[tuple[pa.ipc.RecordBatchFileReader, int]] = []
        counts = []
        for name in shards:
            reader = pa.ipc.open_file(self._source(folder, name))
            last = reader.num_record_batches - 1
            self._batches += [(reader, number) for number in range(last + 1)]
            counts += [BATCH_ROWS] * last + [reader.get_batch(last).num_rows]
        self._starts = np.cumsum([0, *counts])
        self._block = lru_cache(maxsize=16)(self._read)
        widths = {self._block(number).shape[1] for number in self._ends()}
        if len(widths) > 1:
            raise UserError(
                found=f"vectors of widths {sorted(widths)} in {folder.uri}",
                expected="vectors of one width",
                do="delete the step and encode again",
            )
        self.shape = (int(self._starts[-1]), *(widths or {0}))
        self._read_bytes = 0

    def _source(self, folder: Folder, name: str) -> Any:
        path = folder.path(name)
        if not folder.is_local:
            return folder.filesystem.open_input_file(path)
        with open(path, "rb") as file:
            self._maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return pa.py_buffer(self._maps[-1])

    def _ends(self) -> list[int]:
        """The first block of each shard."""
        return [i for i, (_, number) in enumerate(self._batches) if number == 0]

    def _read(self, number: int) -> np.ndarray:
        reader, batch = self._batches[number]
        column = reader.get_batch(batch)["embedding"]
        return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.shape[0])
            if step == 1:
                return self._range(start, max(start, stop))
            rows = np.arange(start, stop, step)
        block = np.searchsorted(self._starts, rows, side="right") - 1
        out = self._empty(len(rows))
        order = np.argsort(block, kind="stable")
        cuts = np.flatnonzero(np.diff(block[order])) + 1
        mapped, each = 0, max(_AROUND, out.itemsize * self.shape[1])
        for part in np.split(order, cuts) if len(order) else []:
            number = int(block[part[0]])
            vectors = self._block(number)
            out[part] = vectors[rows[part] - self._starts[number]]
            mapped += min(vectors.nbytes, each * len(part))
        self._release(mapped)
        return out

    def _range(self, start: int, stop: int) -> np.ndarray:
        out, at = self._empty(stop - start), start
        while at < stop:
            number = int(np.searchsorted(self._starts, at, side="right")) - 1
            first, end = int(self._starts[number]), min(stop, int(self._starts[number + 1]))
            out[at - start : end - start] = self._block(number)[at - first : end - first]
            at = end
        self._release(out.nbytes)
        return out

    def _empty(self, rows: int) -> np.ndarray:
        dtype = self._block(0).dtype if self._batches else np.float32
        return np.empty((rows, self.shape[1]), dtype=dtype)

    def _release(self, size: int) -> None:
        """Pages that were read count as memory of the process until they are given back."""
        self._read_bytes += size
        if self._read_bytes > _MAPPED_BYTES:
            self._read_bytes = 0
            for pages in self._maps:
                pages.madvise(mmap.MADV_DONTNEED)


class Teachers:
    """The vectors of the same rows by several encoders, as one matrix of unit vectors.

    The vectors of a row side by side, divided by the root of their number: a dot product is the
    mean of the encoders' cosines.
    """

    def __init__(self, matrices: Sequence[Embeddings]):
        self._matrices = matrices
        self.shape = (matrices[0].shape[0], sum(matrix.shape[1] for matrix in matrices))

    @classmethod
    def of(cls, teachers: Sequence[Mapping[str, Any]], kind: str) -> "Teachers":
        """From {place: folder, queries / documents: shards} of each encoder."""
        return cls([Embeddings(Folder(one["place"]), one[kind]) for one in teachers])

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if len(self._matrices) == 1:
            return self._matrices[0][rows]
        parts = [matrix[rows].astype(np.float32) for matrix in self._matrices]
        return np.concatenate(parts, axis=1) / np.float32(len(parts) ** 0.5)
