"""Responses of a block: on disk soon after they came, found by key, never lost by closing."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from echo_kind import PROMPT, SCHEMA

from datagen.schema import UserError
from datagen.store import Folder
from datagen.synthesize.call import Call, Response
from datagen.synthesize.llm import LLM, refuse_bad_pool
from datagen.synthesize.responses import Responses, read_responses, response_key

ONE = LLM(name="One", model="a/one", licence="MIT")
DRAWN = {"request": "one/echo/0", "turn": 0, "language": "eng"}


def call(words: str = "some words") -> Call:
    return Call(prompt=PROMPT, values={"text": words}, schema=SCHEMA)


def answered(text: str = "{}") -> Response:
    return Response(text=text, finished=True, prompt_tokens=3, output_tokens=2)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_response_is_on_disk_before_the_block_ends(tmp_path: Path) -> None:
    async def run() -> list[str]:
        responses = Responses(Folder(str(tmp_path)), flush_s=0.05)
        responses.put("k1", DRAWN, answered("one"))
        # A file that is being written has another name until it is whole.
        while not (before := [name for name in files(tmp_path) if not name.startswith(".")]):
            await asyncio.sleep(0.01)
        responses.put("k2", DRAWN, answered("two"))
        await responses.close()
        return before

    before = asyncio.run(run())
    assert len(before) == 1 and before[0].startswith("segment-")
    assert files(tmp_path) == ["responses.arrow"]
    found = read_responses(Folder(str(tmp_path)))
    assert {key: response.text for key, response in found.items()} == {"k1": "one", "k2": "two"}


class SlowFolder(Folder):
    """A place that takes its time."""

    def write_bytes(self, name: str, data: bytes | pa.Buffer) -> None:
        time.sleep(0.2)
        super().write_bytes(name, data)


def test_closing_waits_for_what_is_being_written(tmp_path: Path) -> None:
    async def run() -> dict[str, Response]:
        responses = Responses(SlowFolder(str(tmp_path)), flush_s=0.01)
        responses.put("k1", DRAWN, answered())
        await asyncio.sleep(0.1)  # the write has begun
        await responses.close()
        return read_responses(Folder(str(tmp_path)))

    assert list(asyncio.run(run())) == ["k1"]


def test_what_failed_is_asked_again_and_the_answer_stays(tmp_path: Path) -> None:
    async def run() -> list[Any]:
        folder, seen = Folder(str(tmp_path)), []
        for response in (Response(problem="server_error"), answered("at last")):
            responses = Responses(folder)
            seen.append(responses.get("k1"))
            responses.put("k1", DRAWN, response)
            await responses.close()
        seen.append(Responses(folder).get("k1"))
        return seen

    assert asyncio.run(run()) == [None, None, answered("at last")]


def test_a_key_follows_all_that_decides_a_response_and_nothing_else() -> None:
    def key(llm: LLM = ONE, **changes: Any) -> str:
        drawn = {**DRAWN, **changes.get("drawn", {})}
        return response_key(llm, drawn, changes.get("call", call()), number=changes.get("n", 0))

    def other(**fields: Any) -> LLM:
        return LLM(**{"name": "One", "model": "a/one", "licence": "MIT", **fields})

    same = [
        other(replicas=4), other(share=2.0), other(num_gpus=2), other(languages=("eng", "deu")),
        other(gpu_hour_price=2.0), other(max_num_seqs=64), other(replicas=(1, 4)),
    ]  # fmt: skip
    assert {key(llm) for llm in same} == {key()}
    different = [
        key(other(model="a/two")), key(other(temperature=0.9)), key(other(seed=1)),
        key(other(dtype="float16")), key(other(engine=(("quantization", "fp8"),))),
        key(n=1), key(call=call("other words")), key(drawn={"request": "one/echo/1"}),
        key(other(revision="abc")),
        key(call=Call(prompt=PROMPT, values={"text": "some words"}, schema={})),
    ]  # fmt: skip
    assert len({key(), *different}) == len(different) + 1


def test_a_folder_with_other_weights_is_another_llm(tmp_path: Path) -> None:
    marks = []
    for name, content in (("a", b"weights"), ("b", b"weights"), ("c", b"others!")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(content)
        folder = LLM(name="One", model=str(tmp_path / name), licence="MIT")
        marks.append(folder.config()["weights"])
    assert marks[0] == marks[1] != marks[2]
    assert LLM(name="H", model="org/hub", licence="MIT").config()["weights"] is None


def test_a_hub_id_without_a_revision_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    refuse_bad_pool((LLM(name="One", model="org/hub", licence="MIT", revision="8f2c"),))
    assert not caplog.records
    refuse_bad_pool((LLM(name="One", model="org/hub", licence="MIT"),))
    assert "pin `revision`" in caplog.text
    with pytest.raises(UserError, match="revision 8f2c of gemma3-270m"):
        refuse_bad_pool((LLM(name="One", model="gemma3-270m", licence="G", revision="8f2c"),))
