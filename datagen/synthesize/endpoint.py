"""An OpenAI-compatible server as a member of the pool: vLLM, SGLang, llama.cpp, or a service.

    LLM(
        name="Qwen3-235B-A22B-Instruct",
        model="Qwen/Qwen3-235B-A22B-Instruct-2507",  # as the server calls it
        licence="Apache-2.0",
        endpoint="http://gpu-box:8000/v1",
        key_variable="POOL_KEY",  # the environment variable, not the key; "" for a server without
        structured="json_schema",  # or "structured_outputs" (vLLM's own field), or "none"
        temperature=0.7, top_k=0, max_tokens=512, max_model_len=8192,
        engine=(("chat_template_kwargs", {"enable_thinking": False}),),  # more of the request body
    )

A fault of the server never costs a row, and a prompt that the server minds costs only its own.
Refusals (429, 503) and timeouts lower the number of requests in flight (`admission`) and are asked
again. A request that fails otherwise is tried ATTEMPTS times; then a test request decides who is
to blame. If that fails too, all wait for the server, `endpoint_timeout_s` at most, and go on; if it
is answered, this prompt is the one that breaks it: `server_error`. The first test comes before the
first request. The client's own retries are off: they would hide refusals from the admission.

Sampling that is at its neutral value (`top_k` 0, `presence_penalty` 0, `seed` 0) is not sent, since
not all servers know the fields. Reasoning is paid for and thrown away. Two attempts at one request
can both be paid for when a connection breaks; responses that arrive are never asked for again.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datagen.schema import UserError
from datagen.synthesize.admission import Admission
from datagen.synthesize.call import Call, Response
from datagen.synthesize.endpoint_faults import Fault, fault_of, secrets_of, user_error
from datagen.synthesize.endpoint_wire import probe_body, read_response, request_body
from datagen.synthesize.llm import LLM

log = logging.getLogger("embedmix")

ATTEMPTS = 8  # of a request that fails, before the server is tested; about half a minute
BACKOFF_S, LONGEST_BACKOFF_S = 0.25, 8.0
CONNECT_S = 5.0
RESPONSE_S = 600.0  # for one response, and for a server that refuses everything
LOG_EVERY_S = 10.0
SAID_CHARACTERS = 300
# They have one model and take any name for it; the others refuse a name that they do not know.
ANSWERS_FOR_ANY_MODEL = frozenset({"sglang", "llamacpp"})


@dataclass
class _Tries:
    """How one request has fared."""

    since: float
    number: int = 0
    broken: int = 0
    blamed: int = 0


class EndpointEngine:
    """The client of one server; `answer` is awaited by as many rows as there are."""

    def __init__(self, llm: LLM):
        import httpx2
        import openai

        self.llm = llm
        key, self._secrets = secrets_of(llm)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=llm.max_concurrency)
        self.client = openai.AsyncOpenAI(
            base_url=llm.endpoint,
            api_key=key,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(limits=limits),
        )
        # The client takes these from the environment; they are no business of this server.
        self.client.organization = self.client.project = self.client.admin_api_key = None
        self.admission = Admission(llm.max_concurrency)
        self.faults: Counter[str] = Counter()
        self._heard_at: float | None = None  # when it last gave a response
        self._well_at = 0.0  # when it was asked for the latest of its responses
        self._testing, self._tested = asyncio.Lock(), asyncio.Event()
        self._tested.set()
        self._dead: UserError | None = None
        self._logged_at = time.monotonic()

    async def answer(self, call: Call) -> Response:
        """The response to a call; UserError when the server is gone for good."""
        if self._heard_at is None:
            await self._test_after(time.monotonic())
        prompt: Any = (
            call.prompt.messages(call.values, call.turn)
            if self.llm.chat
            else call.prompt.text(call.values, call.turn)
        )
        max_tokens = call.max_tokens or self.llm.max_tokens
        body = request_body(self.llm, prompt, schema=call.schema, max_tokens=max_tokens)
        tries = _Tries(since=time.monotonic())
        while True:
            try:
                return await self._admitted(body, again=tries.number > 0)
            except Fault as fault:
                found = fault
            tries.number += 1
            if (lost := await self._faced(found, tries)) is not None:
                return lost

    async def check(self) -> None:
        """Raise UserError unless the server gives a response to a test request.

        Waits `endpoint_timeout_s` at most for a server that is loading, busy or away, but for no
        host that has never been found.
        """
        start, pause_s = time.monotonic(), BACKOFF_S
        while (fault := await self._test()) is not None:
            left_s = self.llm.endpoint_timeout_s - (time.monotonic() - start)
            unknown = fault.kind == "unresolved" and self._heard_at is None
            if fault.kind in ("denied", "prompt") or unknown or left_s <= 0:
                await self._give_up(fault)
            await asyncio.sleep(min(max(pause_s, fault.wait_s), left_s))
            pause_s = min(2 * pause_s, LONGEST_BACKOFF_S)

    async def close(self) -> None:
        """Close all connections."""
        if self.faults:
            log.info("%s: faults of its server: %s", self.llm.name, dict(self.faults))
        await self.client.close()

    async def _faced(self, fault: Fault, tries: _Tries) -> Response | None:
        """Wait until another attempt makes sense; or the response that says that none does."""
        if fault.kind == "prompt":
            return Response(problem=fault.problem, text=fault.said)
        if fault.kind == "busy":
            silent_s = time.monotonic() - max(tries.since, self._heard_at or 0.0)
            if fault.wait_s > RESPONSE_S or silent_s > RESPONSE_S:
                await self._give_up(fault)
            return None
        if fault.kind == "broken" and tries.broken + 1 < ATTEMPTS:
            tries.broken += 1
            await asyncio.sleep(min(BACKOFF_S * 2 ** (tries.broken - 1), LONGEST_BACKOFF_S))
            return None
        await self._test_after(fault.asked_at)
        if fault.kind in ("unreachable", "unresolved"):
            return None
        # The server has been well since, so it is the prompt: once might still be chance.
        tries.blamed += 1
        problem = "server_error" if fault.kind == "broken" else "refused_by_server"
        return Response(problem=problem, text=fault.said) if tries.blamed > 1 else None

    async def _test_after(self, asked_at: float) -> None:
        """Test the server, unless it has answered what it was asked later than `asked_at`.

        One test at a time serves all rows.
        """
        async with self._testing:
            self._refuse_dead()
            if self._well_at <= asked_at:
                self._tested.clear()
                try:
                    await self.check()
                finally:
                    self._tested.set()

    def _refuse_dead(self) -> None:
        if self._dead is not None:
            raise UserError(**self._dead.fields())

    async def _test(self) -> Fault | None:
        try:
            if self._heard_at is None:
                await self._refuse_other_model()
            await self._post(probe_body(self.llm))
        except Fault as fault:
            return fault
        return None

    async def _refuse_other_model(self) -> None:
        served = await self._served()
        names = [name for name, _ in served]
        anything = any(owner in ANSWERS_FOR_ANY_MODEL for _, owner in served)
        if anything and self.llm.model not in names:
            raise Fault("denied", "404", status=404)

    async def _give_up(self, fault: Fault) -> None:
        served = await self._served() if fault.status == 404 else []
        self._dead = user_error(
            self.llm, fault, endpoint=self._redacted(self.llm.endpoint), served=served
        )
        raise self._dead

    async def _served(self) -> list[tuple[str, str]]:
        """Names and owners of the server's models; empty where it does not say."""
        import httpx2
        import openai

        options: Any = {"timeout": self._timeout()}
        try:
            answer = await self.client.get("/models", cast_to=httpx2.Response, options=options)
            cards = json.loads(answer.content)["data"]
            return [(str(card["id"]), str(card.get("owned_by"))) for card in cards]
        except (openai.OpenAIError, ValueError, TypeError, KeyError, AttributeError):
            return []

    async def _admitted(self, body: Mapping[str, Any], *, again: bool) -> Response:
        """One attempt, in a slot; the admission learns how it went."""
        async with self.admission.slot(again=again) as slot:
            await self._tested.wait()  # what would go wrong meanwhile says nothing new
            self._refuse_dead()
            try:
                response = await self._post(body)
            except Fault as fault:
                if fault.full or fault.wait_s:
                    self.admission.refused(slot, wait_s=min(fault.wait_s, RESPONSE_S))
                self._count(fault)
                raise
            self.admission.accepted(slot)
            return response

    def _timeout(self) -> Any:
        """Of one request: short before the first response, when nothing says that there is one."""
        import openai

        new = self._heard_at is None
        return openai.Timeout(self.llm.endpoint_timeout_s if new else RESPONSE_S, connect=CONNECT_S)

    async def _post(self, body: Mapping[str, Any]) -> Response:
        import httpx2
        import openai

        asked_at = time.monotonic()
        path = "/chat/completions" if self.llm.chat else "/completions"
        timeout = self._timeout()
        try:
            # Not `create`, which spends more time on the types of the fields than on all the rest.
            answer = await self.client.post(
                path, cast_to=httpx2.Response, body=body, options={"timeout": timeout}
            )
            response = read_response(answer.content, chat=self.llm.chat)
        except openai.OpenAIError as error:
            fault = fault_of(error)
        except Fault as broken:
            fault = broken
        else:
            self._heard_at = time.monotonic()
            self._well_at = max(self._well_at, asked_at)
            return response
        # Raised out here because the client's error holds the request with its headers.
        fault.said, fault.asked_at = self._redacted(fault.said)[:SAID_CHARACTERS], asked_at
        raise fault

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        return text

    def _count(self, fault: Fault) -> None:
        self.faults[fault.kind] += 1
        if time.monotonic() - self._logged_at > LOG_EVERY_S:
            self._logged_at = time.monotonic()
            text = "%s: faults of its server so far: %s; the last: %s; %d requests may be in flight"
            limit = int(self.admission.limit)
            log.warning(text, self.llm.name, dict(self.faults), fault.said, limit)
