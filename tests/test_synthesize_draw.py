"""What is asked of whom: drawn from ids and a seed, the same in any order and on any shards."""

from collections import Counter

import pyarrow as pa
import pytest

from datagen.schema import DOCUMENT
from datagen.store import Folder, write_shard
from datagen.synthesize.draw import (
    retrieval_requests,
    sample_requests,
    seed_documents,
    task_requests,
)
from datagen.synthesize.llm import LLM

ENGLISH = LLM(name="One", model="a/one", licence="MIT")
BOTH = LLM(name="Two", model="a/two", licence="MIT", languages=("eng", "deu"))


def document(i: int, **changes: str) -> dict[str, str | None]:
    row = {"doc_id": f"{i:032x}", "source": "s", "origin": "public", "task": "retrieval"}
    row |= {"title": None, "text": f"{i} " + "word " * 20, "language": "eng", "script": "Latn"}
    return row | {"cluster": row["doc_id"]} | changes


ROWS = [document(i) for i in range(40)] + [
    document(40, language="deu"),
    document(41, language="python", script="Zyyy"),
    document(42, language="fra"),
    document(43, text="short"),
    document(44, task="bitext"),
    document(45, origin="synthetic"),
]


def written(folder: str, *shards: list[dict]) -> tuple[Folder, list[str]]:
    place = Folder(folder)
    names = [
        write_shard(place, "documents", i, pa.Table.from_pylist(rows, schema=DOCUMENT), DOCUMENT)
        for i, rows in enumerate(shards)
    ]
    return place, [shard.name for shard in names]


def drawn(folder: str, *shards: list[dict], counts: tuple[int, int] = (100, 100)) -> list[set[str]]:
    """The ids that each of the two LLMs is given."""
    place, names = written(folder, *shards)
    found = seed_documents(place, names, [ENGLISH, BOTH], counts=counts, seed=7)
    by_shard = dict(zip(names, shards, strict=True))
    return [{by_shard[p["shard"]][p["row"]]["doc_id"] for p in places} for places in found]


def test_an_llm_is_given_public_retrieval_documents_in_its_languages(tmp_path) -> None:
    one, two = drawn(str(tmp_path), ROWS)
    assert one == {row["doc_id"] for row in [*ROWS[:40], ROWS[41]]}
    assert two == {row["doc_id"] for row in ROWS[:42]}  # and the German one


def test_of_many_documents_every_llm_takes_others(tmp_path) -> None:
    one, two = drawn(str(tmp_path), ROWS, counts=(10, 10))
    assert len(one) == len(two) == 10
    assert len(one & two) < 6


def test_the_choice_depends_on_neither_shards_nor_order(tmp_path) -> None:
    whole = drawn(str(tmp_path / "a"), ROWS, counts=(5, 9))
    parts = drawn(str(tmp_path / "b"), ROWS[20:][::-1], ROWS[:20], counts=(5, 9))
    assert whole == parts
    assert [len(ids) for ids in whole] == [5, 9]


def test_documents_come_in_order_of_place_so_that_a_unit_reads_few_shards(tmp_path) -> None:
    place, names = written(str(tmp_path), ROWS[:20], ROWS[20:])
    found = seed_documents(place, names, [BOTH], counts=[30], seed=7)[0]
    assert found == sorted(found, key=lambda p: (p["shard"], p["row"]))


def test_code_is_asked_about_in_english(tmp_path) -> None:
    place, names = written(str(tmp_path), [ROWS[41]])
    assert seed_documents(place, names, [ENGLISH], counts=[1], seed=0) == [
        [{"shard": "documents-00000.arrow", "row": 0, "language": "eng"}]
    ]


def test_knobs_are_drawn_for_each_request_and_stay() -> None:
    places = [{"shard": "s", "row": i, "language": "eng"} for i in range(60)]
    requests = retrieval_requests(ENGLISH, places, seed=3)
    assert requests == retrieval_requests(ENGLISH, places, seed=3)
    assert requests[:10] != retrieval_requests(ENGLISH, places, seed=4)[:10]
    assert requests[59]["request"] == "one/retrieval/59"
    for knob in ("type", "words", "difficulty"):
        counts = Counter(request[knob] for request in requests)
        assert len(counts) == 3
        assert min(counts.values()) >= 8


def test_samples_take_tasks_in_turn_and_labels_of_the_task() -> None:
    tasks = [
        {"task_id": "t1", "instruction": "One.", "labels": ["a", "b"], "language": "eng"},
        {"task_id": "t2", "instruction": "Two.", "labels": ["c", "d", "e"], "language": "eng"},
    ]
    requests = sample_requests(ENGLISH, tasks, count=12, seed=0)
    assert [request["task_id"] for request in requests[:4]] == ["t1", "t2", "t1", "t2"]
    assert {request["label"] for request in requests} == set("abcde")
    assert all(request["label"] in request["labels"] for request in requests)
    assert sample_requests(ENGLISH, [], count=12, seed=0) == []


def test_llms_start_at_topics_of_their_own_and_write_their_languages() -> None:
    one = task_requests(ENGLISH, count=3, languages=("eng", "deu"), seed=0)
    two = task_requests(BOTH, count=30, languages=("eng", "deu"), seed=0)
    assert one[0]["topic"] != two[0]["topic"]
    assert {request["language"] for request in one} == {"eng"}
    assert {request["language"] for request in two} == {"eng", "deu"}
    assert task_requests(ENGLISH, count=3, languages=("fra",), seed=0) == []


@pytest.mark.parametrize(("share", "requests"), [(1.0, 160), (0.5, 80), (0.0, 0)])
def test_a_share_scales_the_requests_of_an_llm(share: float, requests: int) -> None:
    llm = LLM(name="One", model="a/one", licence="MIT", share=share)
    assert llm.requests(160) == requests
