"""A real OpenAI-compatible HTTP server with limits and faults, for tests, in a thread of its own.

Its completions say the document of the prompt, so that a test sees which response belongs to which
request; `reply` makes another text of the body of a request. `fault` names what goes wrong with an
attempt; `at_once` is how many requests it takes at a time, the others get 429.
"""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

Fault = Callable[[str, int], str | None]  # the prompt's document, the number of its attempt
Reply = Callable[[Mapping[str, Any]], str]
TEST = "Answer with this JSON"  # how a test request begins


class EndpointServer:
    """`with EndpointServer(...) as server:` serves at `server.url`."""

    def __init__(
        self,
        *,
        fault: Fault | None = None,
        reply: Reply | None = None,
        at_once: int | None = None,
        retry_after: str | None = None,
        key: str | None = None,
        models: Mapping[str, str] | None = None,  # name to owner; None: no /models
        seconds: Callable[[str], float] = lambda words: 0.005,
        holds: Callable[[str], bool] = lambda words: False,  # while it is true, no answer
        port: int = 0,
    ):
        self.fault, self.at_once, self.retry_after, self.key = fault, at_once, retry_after, key
        self.reply, self.models, self.seconds, self.port = reply, models, seconds, port
        self.holds = holds
        self.attempts: Counter[str] = Counter()  # by document of the prompt
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.statuses: Counter[int] = Counter()
        self.order: list[str] = []  # documents, as they were answered
        self.in_flight = self.peak = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> "EndpointServer":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/completions", self._complete)
        if self.models is not None:
            app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        await self._runner.cleanup()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _models(self, request: web.Request) -> web.Response:
        assert self.models is not None
        cards = [{"id": name, "owned_by": owner} for name, owner in self.models.items()]
        return web.json_response({"object": "list", "data": cards})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        said = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        words = TEST if said.startswith(TEST) else said.split("Document: ")[-1].split("\n")[0]
        self.headers.append(dict(request.headers))
        self.attempts[words] += 1
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return self._error(401, f"Incorrect key: {request.headers.get('Authorization')}")
        models = self.models or {}
        if models and body["model"] not in models and "llamacpp" not in models.values():
            return self._error(404, f"The model `{body['model']}` does not exist.")
        if self.at_once is not None and self.in_flight >= self.at_once:
            return self._error(429, "Too many requests")
        self.bodies.append(body)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            return await self._answer(request, body, words)
        finally:
            self.in_flight -= 1

    async def _answer(
        self, request: web.Request, body: Mapping[str, Any], words: str
    ) -> web.StreamResponse:
        fault = self.fault(words, self.attempts[words]) if self.fault else None
        if fault in FAULTS:
            return await FAULTS[fault](request)
        if fault is not None and fault[:3].isdigit():  # "400 why"
            return self._error(int(fault[:3]), fault[4:])
        await asyncio.sleep(self.seconds(words))
        while self.holds(words):
            await asyncio.sleep(0.02)
        self.answered[words] += 1
        self.order.append(words)
        self.statuses[200] += 1
        text = self.reply(body) if self.reply else json.dumps({"query": words})
        return web.json_response(completion(text, chat="messages" in body, fault=fault))

    def _error(self, status: int, message: str) -> web.Response:
        self.statuses[status] += 1
        wait = status in (429, 503) and self.retry_after is not None
        headers = {"Retry-After": self.retry_after} if wait and self.retry_after else {}
        error = {"message": message, "type": "error", "code": status}
        return web.json_response({"error": error}, status=status, headers=headers)


def completion(text: str, *, chat: bool, fault: str | None) -> dict[str, Any]:
    """The body of a completion; `fault` is one that its JSON can have."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    reason = "stop"
    if fault == "reasoning":
        message |= {"reasoning_content": "SECRET THOUGHT", "reasoning": "SECRET THOUGHT"}
    elif fault == "think":
        message["content"] = f"<think>SECRET THOUGHT</think>\n{text}"
    elif fault == "refusal":
        message |= {"content": None, "refusal": "I would rather not"}
    elif fault in ("length", "content_filter", "abort"):
        reason = fault
    choice = {"index": 0, "finish_reason": reason}
    choice |= {"message": message} if chat else {"text": text}
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    return {"id": "1", "object": "x", "choices": [choice], "usage": usage, "model": "small"}


async def _garbage(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b'\xff\xfe{"choices": [', content_type="application/json")


async def _page(request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>gateway</html>", content_type="text/html")


async def _empty(request: web.Request) -> web.StreamResponse:
    return web.json_response({"choices": []})


async def _drop(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    response.content_type = "application/json"
    await response.prepare(request)
    await response.write(b'{"choices": [{"mess')
    assert request.transport is not None
    request.transport.close()
    return response


FAULTS = {"garbage": _garbage, "page": _page, "empty": _empty, "drop": _drop, "cut": _cut}
