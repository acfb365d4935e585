"""Vectors of texts, kept under what decides them, so that no text is encoded twice.

A *space* is a folder named by the sha256 of all that decides a vector: the digest of the model
folder, the prompt, the longest text, and the precision of the computation and of what is kept.
Inside it a vector is found by the content of its text alone, whichever step or run asked for it:
mining, the round trip and decontamination can share what they encode. Vectors are appended as
segments, Arrow files in the order of encoding that are there whole or not at all, every few
seconds; a kill at any moment costs the batches in flight. Small segments are put together, the new
one first, then the old ones go: by each process its own as they come, FAN at a time, and all that
are left by `merge`. Who asks for few texts at a time leaves few segments all the same.
There is no database and no lock: of two processes that encode the same text at once both keep it.

Cost: 16 bytes and a vector a text on disk, 12 bytes a text in the memory of each reader; vectors
are read by batches of BATCH rows, from local disk or an object store.
"""

import hashlib
import itertools
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs

from datagen.encode import CODE_VERSION
from datagen.encoder_model import EncoderInfo
from datagen.schema import UserError
from datagen.store import Folder

BATCH = 1024  # rows read at once
MERGED_ROWS = 1 << 16  # rows of a segment that is left as it is
FAN = 16  # segments of about one size that a process has written, before they become one
_SEGMENT = "segment-"
_KEY = "key.json"


def space_key(
    info: EncoderInfo, *, prompt: str, max_length: int | None, dtype: str, stored: str
) -> dict[str, Any]:
    """Everything that decides the vector of a text."""
    return {
        "encoder": info.digest,
        "prompt": prompt,
        "max_length": max_length,
        "dtype": dtype,
        "stored": stored,
        "code": CODE_VERSION,
    }


def text_ids(texts: Sequence[str]) -> list[bytes]:
    """128-bit content ids of the very texts that the encoder sees, prompt aside."""
    return [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]


class _Segment:
    """An open segment: where each id is, and rows of vectors by batch."""

    def __init__(self, folder: Folder, name: str):
        path = folder.path(name)
        source = pa.memory_map(path) if folder.is_local else folder.filesystem.open_input_file(path)
        only_ids = pa.ipc.IpcReadOptions(included_fields=[0])
        ids = pa.ipc.open_file(source, options=only_ids).read_all()["text_id"].combine_chunks()
        self.ids = np.frombuffer(ids.buffers()[1], ">u8").reshape(-1, 2)[ids.offset :][: len(ids)]
        self.order = np.argsort(self.ids[:, 0], kind="stable").astype(np.int32)
        self._sorted = self.ids[self.order, 0].astype(np.uint64)
        self.ids = self.ids.astype(np.uint64)
        self._reader = pa.ipc.open_file(source)
        self.width: int = self._reader.schema.field("embedding").type.list_size

    def __len__(self) -> int:
        return len(self.order)

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """The row of each id [n, 2], or -1."""
        place = np.minimum(np.searchsorted(self._sorted, wanted[:, 0]), len(self) - 1)
        row = self.order[place]
        return np.where((self.ids[row] == wanted).all(1), row, -1)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        out: np.ndarray | None = None
        for batch in np.unique(rows // BATCH):
            block = _matrix(self._reader.get_batch(int(batch))["embedding"])
            inside = rows // BATCH == batch
            out = np.empty((len(rows), self.width), block.dtype) if out is None else out
            out[inside] = block[rows[inside] % BATCH]
        assert out is not None
        return out

    def table(self) -> pa.Table:
        return self._reader.read_all()


def _matrix(array: pa.FixedSizeListArray) -> np.ndarray:
    return array.flatten().to_numpy(zero_copy_only=True).reshape(len(array), -1)


class EmbeddingCache:
    """One space of the cache under `root` (a local path or URI), for this process."""

    def __init__(self, root: str, key: Mapping[str, Any]):
        self.key = dict(key)
        name = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = Folder(root).folder(name)
        self._segments: dict[str, _Segment] = {}
        self._written: dict[int, list[str]] = defaultdict(list)  # by how often put together

    def find(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(which texts are there [n] bool, their vectors [found, width] in order)."""
        self._refresh()
        ids = np.frombuffer(b"".join(text_ids(texts)), ">u8").reshape(-1, 2).astype(np.uint64)
        owner, row = np.full(len(texts), -1), np.full(len(texts), -1)
        segments = list(self._segments.values())
        for number, segment in enumerate(segments):
            open_ = np.flatnonzero(owner < 0)
            if not len(open_):
                break
            place = segment.find(ids[open_])
            owner[open_[place >= 0]], row[open_[place >= 0]] = number, place[place >= 0]
        there = owner >= 0
        out = np.empty((int(there.sum()), self._width() or 0), self.key["stored"])
        owner, row = owner[there], row[there]
        for number in np.unique(owner):
            out[owner == number] = segments[number].vectors(row[owner == number])
        return there, out

    def add(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Append one segment."""
        width = self._width()
        if width is not None and width != vectors.shape[1]:
            raise UserError(
                found=f"{self.folder.uri} holds vectors of width {width}, "
                f"the encoder gives {vectors.shape[1]}",
                expected="one width in one space of the cache",
                do="delete that folder of the cache: it was damaged, or the model folder changed "
                "while it was in use",
            )
        if not self.folder.exists(_KEY):
            self.folder.write_json(_KEY, self.key)
        ids = pa.array(text_ids(texts), pa.binary(16))
        flat = pa.array(np.ascontiguousarray(vectors.astype(self.key["stored"])).reshape(-1))
        lists = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        self._keep(self._write(pa.table({"text_id": ids, "embedding": lists})))

    def _keep(self, name: str) -> None:
        """Put FAN segments that this process wrote together, and FAN of those, and so on."""
        for age in itertools.count():
            self._written[age].append(name)
            if len(self._written[age]) < FAN:
                return
            names = self._written.pop(age)
            self._refresh()
            here = [one for one in names if one in self._segments]  # others may have merged some
            if len(here) < 2 or sum(len(self._segments[one]) for one in here) >= MERGED_ROWS:
                return
            name = self._join(here)

    def merge(self) -> None:
        """Put small segments together, in the order of their names; equal ids stay once."""
        self._refresh()
        small = sorted(name for name, s in self._segments.items() if len(s) < MERGED_ROWS)
        while len(small) > 1:
            chosen, rows = [small.pop(0)], 0
            while small and rows < MERGED_ROWS:
                rows += len(self._segments[chosen[-1]])
                chosen.append(small.pop(0))
            self._join(chosen)

    def _join(self, names: Sequence[str]) -> str:
        table = pa.concat_tables([self._segments[name].table() for name in names])
        ids = table["text_id"].to_pylist()
        first = sorted({key: i for i, key in reversed(list(enumerate(ids)))}.values())
        whole = self._write(table.take(pa.array(first)))
        for name in names:
            self.folder.delete(name)
        return whole

    def rows(self) -> int:
        """Vectors in the space; a text that two processes encoded counts twice until `merge`."""
        self._refresh()
        return sum(len(segment) for segment in self._segments.values())

    def _write(self, table: pa.Table) -> str:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            for start in range(0, len(table), BATCH):
                writer.write_batch(table.slice(start, BATCH).combine_chunks().to_batches()[0])
        # Names by time, so that merging keeps neighbours of a run together.
        name = f"{_SEGMENT}{time.time_ns():020d}-{uuid.uuid4().hex[:12]}.arrow"
        self.folder.write_bytes(name, sink.getvalue())
        return name

    def _refresh(self) -> None:
        """Open new segments, forget those that were merged."""
        names = [name for name in self.folder.names() if name.startswith(_SEGMENT)]
        try:
            self._segments = {
                name: self._segments.get(name) or _Segment(self.folder, name) for name in names
            }
        except FileNotFoundError:  # merged since they were listed; what holds them is listed now
            self._refresh()

    def _width(self) -> int | None:
        return next((segment.width for segment in self._segments.values()), None)
