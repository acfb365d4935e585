"""An endpoint as a member of the pool: the real client against a real server, with its faults."""

import asyncio
import json
import logging
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from echo_kind import PROMPT, SCHEMA
from endpoint_server import TEST, EndpointServer
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.schema import UserError
from datagen.store import Folder
from datagen.synthesize import admission, endpoint, endpoint_faults
from datagen.synthesize.admission import Admission
from datagen.synthesize.call import Call, Response
from datagen.synthesize.endpoint import EndpointEngine
from datagen.synthesize.llm import LLM
from datagen.synthesize.replica import Replica
from datagen.synthesize.responses import read_responses

KEY = "sk-very-secret-0123456789"


def llm(server: EndpointServer | None = None, **fields: Any) -> LLM:
    defaults = {"name": "small", "model": "small", "licence": "MIT", "endpoint_timeout_s": 5.0}
    defaults["endpoint"] = server.url if server else "http://127.0.0.1:9/v1"
    return LLM(**(defaults | fields))  # type: ignore[arg-type]


def call(words: str, **fields: Any) -> Call:
    return Call(prompt=PROMPT, values={"text": words}, schema=SCHEMA, **fields)


def ask(
    member: LLM, *words: str, then: Callable[[EndpointEngine], Any] | None = None
) -> list[Response]:
    """Ask for all words at once; `then` sees the engine before it is closed."""

    async def run() -> list[Response]:
        engine = EndpointEngine(member)
        try:
            found = await asyncio.gather(*(engine.answer(call(word)) for word in words))
            if then:
                then(engine)
            return found
        finally:
            await engine.close()

    return asyncio.run(run())


def refused(member: LLM) -> str:
    """The words of the UserError that the first request raises."""
    with pytest.raises(UserError) as caught:
        ask(member, "what is never asked")
    return str(caught.value)


def said(responses: list[Response]) -> list[str]:
    assert all(r.finished and not r.problem for r in responses), responses
    return [json.loads(response.text)["query"] for response in responses]


@contextmanager
def free_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]  # bound, not listening: connections are refused


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "BACKOFF_S", 0.02)
    monkeypatch.setattr(endpoint, "LONGEST_BACKOFF_S", 0.08)
    monkeypatch.setattr(admission, "PAUSE_S", 0.002)


def test_a_response_and_what_was_sent() -> None:
    with EndpointServer() as server:
        (response,) = ask(llm(server, temperature=0.7, top_k=20, max_tokens=99), "the Nile")
        body = server.bodies[-1]
    assert response == Response(
        text='{"query": "the Nile"}', finished=True, prompt_tokens=11, output_tokens=7
    )
    assert body["messages"][0] == {"role": "system", "content": "Say what you read."}
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("small", 0.7, 99)
    assert body["top_k"] == 20  # not a field of OpenAI's own
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert body["response_format"]["json_schema"]["strict"] is True
    assert "seed" not in body  # 0: the server's own


def test_fields_at_their_neutral_value_are_not_sent() -> None:
    more = (("chat_template_kwargs", {"enable_thinking": False}),)
    with EndpointServer() as server:
        member = llm(server, top_k=0, presence_penalty=0.0, seed=3, engine=more)
        ask(member, "the Nile")
        body = server.bodies[-1]
    assert not {"top_k", "presence_penalty"} & set(body)
    assert body["seed"] == 3
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_base_models_are_prompted_with_running_text_and_vllm_with_its_own_field() -> None:
    with EndpointServer() as server:
        member = llm(server, chat=False, structured="structured_outputs")
        assert said(ask(member, "the Nile")) == ["the Nile"]
        body = server.bodies[-1]
    assert body["prompt"].startswith("Say what you read.")
    assert body["structured_outputs"]["json"] == SCHEMA
    assert "response_format" not in body and "messages" not in body


def test_free_text_and_a_limit_of_the_call_itself() -> None:
    async def run(member: LLM) -> None:
        engine = EndpointEngine(member)
        free = Call(prompt=PROMPT, values={"text": "x"}, schema=None, max_tokens=5)  # type: ignore[arg-type]
        await engine.answer(free)
        await engine.close()

    with EndpointServer() as server:
        asyncio.run(run(llm(server)))
        body = server.bodies[-1]
    assert body["max_tokens"] == 5 and "response_format" not in body


@pytest.mark.parametrize("fault", ["reasoning", "think"])
def test_reasoning_is_never_stored(fault: str) -> None:
    with EndpointServer(fault=lambda words, attempt: fault) as server:
        (response,) = ask(llm(server), "the Nile")
    assert response.text == '{"query": "the Nile"}'


def test_a_response_that_was_cut_is_not_finished() -> None:
    with EndpointServer(fault=lambda words, attempt: "length") as server:
        (response,) = ask(llm(server), "the Nile")
    assert not response.finished and not response.problem


@pytest.mark.parametrize("retry_after", [None, "0.05"])
def test_a_server_with_room_for_six_answers_every_request_once(retry_after: str | None) -> None:
    words = [f"document {i}" for i in range(120)]
    limits = []
    with EndpointServer(at_once=6, retry_after=retry_after, seconds=lambda words: 0.03) as server:
        member = llm(server)
        found = ask(member, *words, then=lambda engine: limits.append(engine.admission.limit))
        assert said(found) == words
        assert all(server.answered[word] == 1 for word in words)
        assert server.peak == 6  # all the room there was
        # One refusal ends a climb from 3 to 7, which takes about 3 + 4 + 5 + 6 responses.
        assert server.statuses[429] < 120 / 6
    assert 3 <= limits[0] <= 12


def test_without_limits_the_cap_is_reached_and_kept() -> None:
    words = [f"document {i}" for i in range(120)]
    with EndpointServer(seconds=lambda words: 0.2) as server:
        assert said(ask(llm(server, max_concurrency=24), *words)) == words
        assert server.peak == 24


def test_slow_responses_do_not_hold_up_the_others() -> None:
    words = ["slow 0", "slow 1", *(f"quick {i}" for i in range(60))]
    with EndpointServer(seconds=lambda words: 1.0 if "slow" in words else 0.005) as server:
        assert said(ask(llm(server), *words)) == words
        assert set(server.order[-2:]) == {"slow 0", "slow 1"}


@pytest.mark.parametrize("fault", ["500 overheated", "503 loading", "504 gateway", "garbage"])
def test_a_server_that_fails_for_a_while_costs_no_row(fault: str) -> None:
    words = [f"document {i}" for i in range(20)]

    def first_attempts(words: str, attempt: int) -> str | None:
        return fault if words != TEST and attempt <= 2 else None

    with EndpointServer(fault=first_attempts) as server:
        assert said(ask(llm(server), *words)) == words
        assert all(server.attempts[word] == 3 and server.answered[word] == 1 for word in words)


@pytest.mark.parametrize("fault", ["drop", "cut", "page", "empty", "abort", "408 slow", "409 lock"])
def test_broken_answers_are_asked_for_again(fault: str) -> None:
    words = [f"document {i}" for i in range(40)]

    def every_third(words: str, attempt: int) -> str | None:
        return fault if words != TEST and attempt == 1 and int(words[9:]) % 3 == 0 else None

    with EndpointServer(fault=every_third) as server:
        assert said(ask(llm(server), *words)) == words
        assert sum(server.attempts[word] for word in words) == 40 + 14


def test_an_outage_longer_than_all_attempts_costs_no_row() -> None:
    words = [f"document {i}" for i in range(30)]

    def down_until_tested_six_times(words: str, attempt: int) -> str | None:
        if words == TEST:
            return "500 down" if 1 < attempt <= 6 else None
        return "500 down" if server.attempts[TEST] <= 6 else None

    with EndpointServer(fault=down_until_tested_six_times) as server:
        assert said(ask(llm(server), *words)) == words
        assert server.attempts[TEST] == 7  # one test at a time for all rows


def test_a_server_that_starts_late_is_waited_for() -> None:
    async def run(port: int) -> list[Response]:
        member = llm(endpoint=f"http://127.0.0.1:{port}/v1", endpoint_timeout_s=20.0)
        engine = EndpointEngine(member)
        asked = asyncio.create_task(engine.answer(call("the Nile")))
        await asyncio.sleep(0.3)
        with EndpointServer(port=port):
            found = await asked
            await engine.close()
        return [found]

    with free_port() as port:
        pass
    assert said(asyncio.run(run(port))) == ["the Nile"]


def test_a_server_that_restarts_costs_no_row() -> None:
    words = [f"document {i}" for i in range(40)]

    async def run() -> list[Response]:
        with EndpointServer() as first:
            engine = EndpointEngine(llm(first, endpoint_timeout_s=20.0))
            found = await asyncio.gather(*(engine.answer(call(word)) for word in words[:20]))
        rest = [asyncio.create_task(engine.answer(call(word))) for word in words[20:]]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in rest)
        with EndpointServer(port=first.port):
            found += await asyncio.gather(*rest)
            await engine.close()
        return found

    assert said(asyncio.run(run())) == words


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("400 This model's maximum context length is 4096 tokens.", "prompt_too_long"),
        ("400 The input (9000 tokens) is longer than the model's context.", "prompt_too_long"),
        ("400 the request exceeds the available context size", "prompt_too_long"),
        ("413 Payload", "prompt_too_long"),
        ("400 The response was filtered", "refused_by_server"),
        ("403 flagged by moderation", "refused_by_server"),
        ("500 this prompt kills me", "server_error"),
        ("drop", "server_error"),
        ("refusal", "refused_by_server"),
        ("content_filter", "refused_by_server"),
    ],
)
def test_a_prompt_that_the_server_minds_costs_its_own_row(fault: str, problem: str) -> None:
    words = ["good 1", "bad", "good 2"]
    with EndpointServer(fault=lambda words, _: fault if words == "bad" else None) as server:
        one, bad, two = ask(llm(server), *words)
        attempts = server.attempts["bad"]
    assert said([one, two]) == ["good 1", "good 2"]
    assert bad.problem == problem
    assert attempts == {"server_error": 9}.get(problem, 2 if "403" in fault else 1)


def test_a_wrong_key_is_said_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOL_KEY", "sk-wrong")
    with EndpointServer(key=KEY) as server:
        text = refused(llm(server, key_variable="POOL_KEY"))
        assert "POOL_KEY" in text and "sk-wrong" not in text and "401" in text
        assert sum(server.attempts.values()) == 1
        assert "requests without a key" in refused(llm(server))


@pytest.mark.parametrize("models", [{"large": "vllm"}, {"large": "llamacpp"}])
def test_an_unknown_model_is_said_with_those_that_are_served(models: dict[str, str]) -> None:
    with EndpointServer(models=models) as server:
        assert re.search("does not serve small(.|\n)*large", refused(llm(server)))


def test_a_key_that_expires_ends_the_run() -> None:
    async def run(member: LLM) -> list[Any]:
        engine = EndpointEngine(member)
        await engine.answer(call("the first"))
        calls = [call(f"document {i}") for i in range(100)]
        rows = await asyncio.gather(*map(engine.answer, calls), return_exceptions=True)
        await engine.close()
        return rows

    with EndpointServer(
        fault=lambda words, attempt: "401" if server.order[20:] else None
    ) as server:
        rows = asyncio.run(run(llm(server)))
        assert sum(server.attempts.values()) < 80  # not one each
    ended = [row for row in rows if isinstance(row, UserError)]
    assert "refuses requests without a key" in str(ended[0])
    assert len(ended) + len(said([row for row in rows if isinstance(row, Response)])) == 100


def test_an_account_that_is_used_up_ends_the_run() -> None:
    with EndpointServer(fault=lambda words, attempt: "402 pay") as server:
        assert "used up" in refused(llm(server))


def test_a_server_that_minds_the_fields_is_said_before_anything_is_asked() -> None:
    with EndpointServer(fault=lambda words, attempt: "400 Unrecognized: top_k") as server:
        assert re.search("Unrecognized: top_k(.|\n)*try top_k=0", refused(llm(server)))


def test_a_server_that_is_not_there() -> None:
    with free_port() as port:
        member = llm(endpoint=f"http://127.0.0.1:{port}/v1", endpoint_timeout_s=0.2)
        assert "cannot be reached" in refused(member)
    unknown = llm(endpoint="http://no-such-host.invalid/v1", endpoint_timeout_s=600.0)
    assert "cannot be resolved" in refused(unknown)
    assert "no http" in refused(llm(endpoint="gpu-box:8000/v1"))


def test_a_server_that_fails_for_too_long() -> None:
    with EndpointServer(fault=lambda words, attempt: "500 dead") as server:
        assert "gives no responses: 500: dead" in refused(llm(server, endpoint_timeout_s=0.3))
    with EndpointServer(seconds=lambda words: 60.0) as server:
        assert "no response in time" in refused(llm(server, endpoint_timeout_s=0.3))
    with EndpointServer(at_once=0) as server:
        assert "refuses all requests" in refused(llm(server, endpoint_timeout_s=0.3))


def test_endless_refusals_in_the_middle_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "RESPONSE_S", 0.5)
    with EndpointServer(fault=lambda words, attempt: None if words == TEST else "429") as server:
        assert "refuses all requests" in refused(llm(server))
    with EndpointServer(
        fault=lambda words, _: None if words == TEST else "429", retry_after="86400"
    ) as server:
        assert "refuses all requests" in refused(llm(server))


def test_a_variable_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POOL_KEY", raising=False)
    assert "nothing in the environment variable POOL_KEY" in refused(llm(key_variable="POOL_KEY"))
    for key in ("schlüssel", "two words"):
        monkeypatch.setenv("POOL_KEY", key)
        text = refused(llm(key_variable="POOL_KEY"))
        assert "no usable key" in text and key not in text


def test_the_key_is_sent_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("POOL_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another-service")
    monkeypatch.setattr(endpoint, "LOG_EVERY_S", 0.0)
    for name in ("openai", "httpx2", "httpcore2"):
        caplog.set_level(logging.DEBUG, logger=name)
    caplog.set_level(logging.DEBUG)
    faults = {"echo": f"400 key {KEY} used", "busy": f"503 {KEY}", "drop": "drop"}
    faults["long"] = f"400 {'x' * 285}{KEY}"  # not cut in the middle of the key

    def echo(words: str, attempt: int) -> str | None:
        return faults.get(words) if attempt == 1 else None

    shown = []
    with EndpointServer(key=KEY, fault=echo) as server:
        member = llm(server, key_variable="POOL_KEY")
        found = ask(member, *faults, then=lambda e: shown.append(repr(vars(e))))
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        assert not any("OpenAI-Organization" in headers for headers in server.headers)
    assert found[0].problem == "refused_by_server" and "[secret]" in found[0].text
    assert "503: [secret]" in caplog.text
    everything = [caplog.text, repr(found), repr(member), json.dumps(member.config())]
    assert not any(KEY[:8] in text for text in everything)


class EchoKind:
    """Asks for the words of a request."""

    name = "echo"

    def __init__(self, llm: LLM, block: Mapping[str, Any]):
        self.llm = llm

    def call(self, drawn: Mapping[str, Any], values: Sequence[Mapping[str, Any]]) -> Call | None:
        return None if values else call(drawn["words"])

    def problem(self, drawn: Mapping[str, Any], values: Sequence[Mapping[str, Any]]) -> None:
        return None

    def row(self, drawn: Mapping[str, Any], values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {"query": values[0]["query"]}


def test_a_replica_stores_what_an_endpoint_answers(tmp_path: Path) -> None:
    requests = [{"request": f"small/echo/{i}", "words": f"document {i}"} for i in range(30)]
    block = {"kind": "echo", "place": "small-echo-0", "requests": requests}

    async def run(member: LLM) -> dict[str, float]:
        replica = Replica(member, cache="", kinds={"echo": EchoKind}, folder=str(tmp_path))
        sums = await replica.answer(block)
        await replica.close()
        return sums

    with EndpointServer(fault=lambda words, attempt: "503" if attempt == 1 else None) as server:
        assert asyncio.run(run(llm(server)))["asked"] == 30
        assert asyncio.run(run(llm(server)))["reused"] == 30
        assert all(server.answered[request["words"]] == 1 for request in requests)
    stored = read_responses(Folder(str(tmp_path)).folder("small-echo-0"))
    assert sorted(said(list(stored.values()))) == sorted(r["words"] for r in requests)


def test_cancelled_requests_give_their_slots_back() -> None:
    async def run(server: EndpointServer) -> tuple[int, Response]:
        engine = EndpointEngine(llm(server, max_concurrency=4))
        await engine.check()
        tasks = [asyncio.create_task(engine.answer(call(f"slow {i}"))) for i in range(12)]
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        left = engine.admission.in_flight
        found = await engine.answer(call("quick"))
        await engine.close()
        return left, found

    with EndpointServer(seconds=lambda words: 60.0 if "slow" in words else 0.0) as server:
        left, found = asyncio.run(run(server))
    assert left == 0 and said([found]) == ["quick"]


def simulate(
    rounds: int, *, room: Callable[[int], int], crowd: int = 300, most: int = 256, first: int = 8
) -> list[int]:
    """The limit at the end of each round trip of a server that has `room` in this round."""

    async def run() -> list[int]:
        gate, limits = Admission(most, first=first), []
        arrived: list[asyncio.Future[bool]] = []

        async def ask_forever() -> None:
            while True:
                async with gate.slot() as slot:
                    response = asyncio.get_running_loop().create_future()
                    arrived.append(response)
                    (gate.accepted if await response else gate.refused)(slot)

        tasks = [asyncio.create_task(ask_forever()) for _ in range(crowd)]
        for number in range(rounds):
            while not arrived:
                await asyncio.sleep(0.001)  # held back by a pause
            batch, arrived[:] = list(arrived), []
            for place, response in enumerate(batch):
                response.set_result(place < room(number))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            limits.append(int(gate.limit))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert gate.in_flight == 0
        return limits

    return asyncio.run(run())


def test_the_limit_doubles_every_round_up_to_the_cap() -> None:
    assert simulate(6, room=lambda _: 10**6, most=100) == [16, 32, 64, 100, 100, 100]


def test_refusals_halve_the_limit_once_a_round_then_it_grows_by_one() -> None:
    limits = simulate(24, room=lambda _: 40)
    assert limits[:3] == [16, 32, 64]
    # 40 responses made it 104, then 24 refusals halved it once; those of the next round were let in
    # before that, and count for nothing.
    assert limits[3:5] == [52, 52]
    assert max(later - limit for limit, later in pairwise(limits[5:])) == 1
    assert all(20 <= limit <= 41 for limit in limits[5:])


def test_a_demand_below_the_limit_teaches_nothing() -> None:
    assert simulate(10, room=lambda _: 10**6, crowd=5) == [8] * 10


def test_after_an_outage_the_limit_doubles_up_to_half_of_what_it_was() -> None:
    limits = simulate(20, room=lambda number: 0 if 3 <= number < 12 else 10**6)
    assert limits[2] == 64 and min(limits) == limits[11] == 1
    assert limits[12:17] == [2, 4, 8, 16, 32]
    assert limits[17] <= 34


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.sampled_from(["enter", "accept", "refuse", "cancel"]), max_size=60))
def test_slots_are_neither_lost_nor_given_twice(steps: list[str]) -> None:
    """Whatever happens: never more in flight than the highest limit so far, and none at the end."""

    async def run() -> None:
        gate, highest = Admission(6, first=2), 2
        held: list[tuple[asyncio.Task[None], asyncio.Future[bool]]] = []

        async def one(verdict: asyncio.Future[bool]) -> None:
            async with gate.slot() as slot:
                (gate.accepted if await verdict else gate.refused)(slot)

        for step in steps:
            if step == "enter":
                verdict = asyncio.get_running_loop().create_future()
                held.append((asyncio.create_task(one(verdict)), verdict))
            elif held:
                task, verdict = held.pop(0)
                task.cancel() if step == "cancel" else verdict.set_result(step == "accept")
            await asyncio.sleep(0)
            highest = max(highest, int(gate.limit))
            assert 0 <= gate.in_flight <= highest and 1 <= gate.limit <= 6
        for task, _ in held:
            task.cancel()
        await asyncio.sleep(0.001)
        for _ in range(3):
            await asyncio.sleep(0)
        left = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        await asyncio.gather(*left, return_exceptions=True)
        assert gate.in_flight == 0

    asyncio.run(run())


def test_retry_after_holds_all_requests_back() -> None:
    async def run() -> float:
        gate = Admission(64)
        async with gate.slot() as slot:
            gate.refused(slot, wait_s=0.2)
        start = asyncio.get_running_loop().time()
        async with gate.slot():
            return asyncio.get_running_loop().time() - start

    assert asyncio.run(run()) > 0.15


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("nan", 0.0), ("soon", 0.0), ("", 0.0)],
)
def test_retry_after_in_seconds(text: str, seconds: float) -> None:
    assert endpoint_faults.retry_after_s({"retry-after": text}) == seconds


def test_retry_after_as_a_date() -> None:
    past = {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}
    assert endpoint_faults.retry_after_s(past) == 0.0
    future = {"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}
    assert endpoint_faults.retry_after_s(future) > 1e9
