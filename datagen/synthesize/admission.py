"""How many requests may be in flight to a server whose limits nobody told us.

The limit follows TCP (Jacobson 1988; RFC 5681): it doubles every round trip until the first refusal
(429, 503, timeout), then grows by one every round trip. A refusal halves it, at most once per round
trip: a request that was let in before the limit was last halved says nothing about the limit of
now. Additive increase with multiplicative decrease is what makes several clients of one server end
up with equal shares (Chiu and Jain 1989). Only a limit that is used up grows (RFC 7661), so an idle
time teaches nothing. `Retry-After` holds all requests back, as does a pause that doubles with every
refusal that no response came between. After it the limit doubles again, up to where it was halved.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

FIRST = 8  # requests in flight at the start
PAUSE_S, LONGEST_PAUSE_S = 0.1, 30.0


class Admission:
    """Slots for requests, of one event loop; `limit` and `in_flight` say where it stands."""

    def __init__(self, most: int, *, first: int = FIRST):
        self.most = most
        self.limit = float(min(first, most))
        self.in_flight = 0
        self._threshold = math.inf  # below it the limit doubles every round trip
        self._round = 0
        self._refusals = 0  # since the last response
        self._pause: asyncio.TimerHandle | None = None
        self._waiting: deque[asyncio.Future[int]] = deque()

    @asynccontextmanager
    async def slot(self, *, again: bool = False) -> AsyncIterator[int]:
        """Wait for a slot, `again` before the others; gives what `accepted` and `refused` need."""
        number = await self._enter(again=again)
        try:
            yield number
        finally:
            self._leave()

    def accepted(self, slot: int) -> None:
        """The server took the request of this slot; to be said while the slot is held."""
        if slot != self._round:
            return
        self._refusals = 0
        if self.in_flight >= int(self.limit):
            step = 1.0 if self.limit < self._threshold else 1.0 / self.limit
            self.limit = min(self.limit + step, float(self.most))

    def refused(self, slot: int, *, wait_s: float = 0.0) -> None:
        """The server had no room for it; `wait_s` is how long it asked to be left alone."""
        if slot == self._round:
            self._round += 1
            self._refusals += 1
            if self._refusals == 1:
                self._threshold = max(self.limit / 2, 1.0)
            else:
                wait_s = max(wait_s, min(PAUSE_S * 2 ** (self._refusals - 2), LONGEST_PAUSE_S))
            self.limit = max(self.limit / 2, 1.0)
        if wait_s > 0:
            self._hold(wait_s)

    def _hold(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._pause is not None:
            if self._pause.when() >= loop.time() + seconds:
                return
            self._pause.cancel()
        self._pause = loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._wake()

    def _free(self) -> bool:
        return self._pause is None and self.in_flight < int(self.limit)

    async def _enter(self, *, again: bool) -> int:
        if self._free() and (again or not self._waiting):
            self.in_flight += 1
            return self._round
        turn = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if again else self._waiting.append)(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # cancelled with the slot in its hands
                self._leave()
            raise

    def _leave(self) -> None:
        self.in_flight -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._free():
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(self._round)
