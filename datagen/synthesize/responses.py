"""Responses of one block of requests, each on disk moments after it arrived, and found by its key.

A key is the sha256 over everything that decides a response: the LLM's weights and settings, the
sampling, the rendered prompt, the schema, the request and the number of the call. Whatever else of
a recipe changes, a response with the same key is not asked for again. Segments of some responses
are written as they come, each a small Arrow file that is there whole or not at all, and put
together when the block is done; of what is on disk nothing is ever rewritten before its successor
is there, so a kill at any moment costs the responses of the last FLUSH_S seconds.
"""

import asyncio
import hashlib
import json
import uuid
from typing import Any

import pyarrow as pa

from datagen.store import Folder, encode_shard
from datagen.synthesize.call import Call, Drawn, Response
from datagen.synthesize.llm import LLM

FLUSH_S = 2.0
WHOLE = "responses.arrow"
SEGMENT = "segment-"
STORED = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("request", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("finished", pa.bool_(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("output_tokens", pa.int32(), nullable=False),
        pa.field("problem", pa.string(), nullable=False),
    ]
)


def response_key(llm: LLM, drawn: Drawn, call: Call, *, number: int) -> str:
    """What a response is found by; `number` counts the calls of a request."""
    prompt = (
        call.prompt.messages(call.values, call.turn)
        if llm.chat
        else call.prompt.text(call.values, call.turn)
    )
    decides = [llm.fingerprint(), drawn["request"], number, prompt, call.schema, call.max_tokens]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def read_responses(folder: Folder) -> dict[str, Response]:
    """All responses of a block by key; of two with one key the one that has an answer."""
    return {row["key"]: _response(row) for row in _stored(folder).to_pylist()}


def _stored(folder: Folder) -> pa.Table:
    names = folder.names()
    parts = [name for name in names if name == WHOLE or name.startswith(SEGMENT)]
    tables = [pa.ipc.open_file(folder.read_bytes(name)).read_all() for name in parts]
    return _distinct(pa.concat_tables([STORED.empty_table(), *tables]))


def _distinct(rows: pa.Table) -> pa.Table:
    best: dict[str, dict[str, Any]] = {}
    for row in rows.to_pylist():
        if row["key"] not in best or best[row["key"]]["problem"]:
            best[row["key"]] = row
    return pa.Table.from_pylist([best[key] for key in sorted(best)], schema=STORED)


def _response(row: dict[str, Any]) -> Response:
    return Response(**{name: row[name] for name in row if name not in ("key", "request")})


class Responses:
    """The responses of one block while it is being answered; used inside one event loop."""

    def __init__(self, folder: Folder, *, flush_s: float = FLUSH_S):
        self.folder, self.flush_s = folder, flush_s
        self._known = read_responses(folder)
        self._waiting: list[dict[str, Any]] = []
        self._flushing: asyncio.Task | None = None
        self._writing = asyncio.Lock()  # who closes waits for what is being written

    def get(self, key: str) -> Response | None:
        """A response that is there and has an answer; one that failed is asked for again."""
        known = self._known.get(key)
        return known if known and not known.problem else None

    def put(self, key: str, drawn: Drawn, response: Response) -> None:
        """Take a response; it is on disk within `flush_s` seconds."""
        fields = {name: getattr(response, name) for name in STORED.names[2:]}
        self._waiting.append({"key": key, "request": drawn["request"], **fields})
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush_soon())

    async def _flush_soon(self) -> None:
        await asyncio.sleep(self.flush_s)
        self._flushing = None
        await self._flush()

    async def _flush(self) -> None:
        async with self._writing:
            rows, self._waiting = self._waiting, []
            if rows:
                table = pa.Table.from_pylist(rows, schema=STORED)
                name = f"{SEGMENT}{uuid.uuid4().hex}.arrow"
                await asyncio.to_thread(self.folder.write_bytes, name, encode_shard(table))

    async def close(self) -> None:
        """Write what is left and put the segments together, sorted by key."""
        if self._flushing is not None:
            self._flushing.cancel()
        await self._flush()
        await asyncio.to_thread(self._put_together)

    def _put_together(self) -> None:
        segments = [name for name in self.folder.names() if name.startswith(SEGMENT)]
        if segments:
            self.folder.write_bytes(WHOLE, encode_shard(_stored(self.folder)))
            for name in segments:
                self.folder.delete(name)
