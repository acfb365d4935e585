"""What is asked of whom: drawn from ids and a seed, the same in any order and on any shards."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.schema import DOCUMENT, QUERY, UserError
from datagen.store import Folder, write_shard
from datagen.synthesize.draw import SEEDED, given_tasks, requests
from datagen.synthesize.kinds import KINDS
from datagen.synthesize.knobs import LENGTHS, QUERY_TYPES, SHAPES, TASK_KINDS, Knobs
from datagen.synthesize.llm import LLM
from datagen.synthesize.places import document_places, query_places
from datagen.synthesize.rules import text_problem
from datagen.synthesize.seeds import draw_some, fraction, lines

ENGLISH = LLM(name="One", model="a/one", licence="MIT")
BOTH = LLM(name="Two", model="a/two", licence="MIT", languages=("eng", "deu"))
BILINGUAL = Knobs(languages=("eng", "deu"))


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


def written(
    folder: str, *shards: list[dict], table: str = "documents", schema: pa.Schema = DOCUMENT
) -> tuple[Folder, list[str]]:
    place = Folder(folder)
    names = [
        write_shard(place, table, i, pa.Table.from_pylist(rows, schema=schema), schema)
        for i, rows in enumerate(shards)
    ]
    return place, [shard.name for shard in names]


def drawn(
    folder: str, *shards: list[dict], counts: tuple[int, int] = (100, 100), **options: Any
) -> list[list[str]]:
    """The ids that each of the two LLMs is given, in order."""
    place, names = written(folder, *shards)
    found = document_places(place, names, [ENGLISH, BOTH], counts=counts, seed=7, **options)
    by_shard = dict(zip(names, shards, strict=True))
    return [[by_shard[p["shard"]][p["row"]]["doc_id"] for p in places] for places in found]


def test_an_llm_is_given_public_retrieval_documents_that_it_reads(tmp_path) -> None:
    one, two = drawn(str(tmp_path), ROWS)
    assert set(one) == {row["doc_id"] for row in [*ROWS[:40], ROWS[41]]}
    assert set(two) == {row["doc_id"] for row in ROWS[:42]}  # and the German one
    assert drawn(str(tmp_path / "code"), ROWS, only_code=True) == [[ROWS[41]["doc_id"]]] * 2


def test_of_many_documents_every_llm_takes_others(tmp_path) -> None:
    one, two = drawn(str(tmp_path), ROWS, counts=(10, 10))
    assert len(one) == len(two) == 10
    assert len(set(one) & set(two)) < 6


def test_the_order_depends_on_neither_shards_nor_how_many_are_sought(tmp_path) -> None:
    whole = drawn(str(tmp_path / "a"), ROWS, counts=(41, 42))
    parts = drawn(str(tmp_path / "b"), ROWS[20:][::-1], ROWS[:20], counts=(5, 9))
    assert [whole[0][:5], whole[1][:9]] == parts
    assert whole[0] != sorted(whole[0])


def test_a_place_says_which_language_and_whether_it_is_code(tmp_path) -> None:
    place, names = written(str(tmp_path), [ROWS[41]])
    assert document_places(place, names, [ENGLISH], counts=[1], seed=0) == [
        [{"shard": "documents-00000.arrow", "row": 0, "language": "python", "code": True}]
    ]
    assert document_places(place, names, [ENGLISH], counts=[0], seed=0) == [[]]


def test_a_query_is_found_with_its_document_in_another_shard(tmp_path) -> None:
    folder, documents = written(str(tmp_path), ROWS[:20], ROWS[20:])
    base = {"source": "s", "origin": "public", "task": "retrieval", "given_negatives": []}
    base |= {"script": "Latn", "cluster": "", "query": "Which word?"}
    asked = [
        base | {"query_id": f"{i:032x}", "language": "eng", "positives": [ROWS[i]["doc_id"]]}
        for i in (3, 40)
    ]
    asked.append(base | {"query_id": f"{9:032x}", "language": "fra", "positives": ["f" * 32]})
    _, queries = written(str(tmp_path), asked, table="queries", schema=QUERY)
    (found,) = query_places(folder, queries, documents, [BOTH], counts=[5], seed=0)
    assert sorted(found, key=lambda place: place["query_row"]) == [
        {"query_shard": "queries-00000.arrow", "query_row": 0, "language": "eng",
         "shard": "documents-00000.arrow", "row": 3, "document_language": "eng"},
        {"query_shard": "queries-00000.arrow", "query_row": 1, "language": "eng",
         "shard": "documents-00001.arrow", "row": 20, "document_language": "deu"},
    ]  # fmt: skip


PLACES = [
    {"shard": "s", "row": i, "language": "eng", "code": False, "document_language": "eng",
     "query_shard": "q", "query_row": i}
    for i in range(60)
]  # fmt: skip
TASK = {"kind": "scratch", "shape": "short_long", "llm": "Other", "language": "eng"}
TASKS = [
    TASK | {"task_id": f"t{i}", "instruction": f"Find text {i}.", "labels": labels}
    for i, labels in enumerate([["a", "b"], ["c", "d", "e"]])
]


def seeds_of(kind: str) -> list[dict[str, Any]]:
    if kind in ("retrieval", "translation", "code_translation"):
        return PLACES
    return TASKS if kind in SEEDED else []


@pytest.mark.parametrize("kind", sorted({*KINDS, "tasks"}))
def test_a_request_is_the_same_whatever_range_is_asked_for(kind: str) -> None:
    more = {"knobs": BILINGUAL, "seeds": seeds_of(kind)}
    whole = requests(kind, BOTH, range(150), seed=3, **more)
    parts = [requests(kind, BOTH, range(i, i + 50), seed=3, **more) for i in (100, 0, 50)]
    assert parts[1] + parts[2] + parts[0] == whole
    assert whole[59]["request"] == f"two/{kind}/59" and whole[59]["turn"] == 59
    assert len({str(sorted(request.items(), key=str)) for request in whole}) == 150
    other = requests(kind, BOTH, range(150), seed=4, **more)
    assert other != whole or kind == "translation"  # of two languages one is left
    assert {request["language"] for request in whole} <= {"eng", "deu"} or "code" in kind


@pytest.mark.parametrize("kind", sorted(SEEDED))
def test_without_documents_or_tasks_there_is_nothing_to_ask(kind: str) -> None:
    assert requests(kind, BOTH, range(5), seed=0, knobs=Knobs(), seeds=[]) == []


def test_documents_come_again_with_other_knobs() -> None:
    asked = requests("retrieval", ENGLISH, range(150), seed=3, knobs=Knobs(), seeds=PLACES)
    for one, other in zip(asked, asked[60:], strict=False):
        assert one["row"] == other["row"]
        assert all(one[knob] != other[knob] for knob in ("type", "words", "difficulty"))
    for knob in ("type", "words", "difficulty"):
        counts = Counter(request[knob] for request in asked)
        assert len(counts) == 3 and min(counts.values()) >= 30


def test_in_two_calls_candidates_are_drawn() -> None:
    asked = requests("retrieval", ENGLISH, range(60), seed=3, knobs=Knobs(calls=2), seeds=PLACES)
    assert {len(set(request["personas"])) for request in asked} == {4}
    assert {kind for request in asked for kind in request["types"]} == set(QUERY_TYPES)
    assert {one for request in asked for one in request["lengths"]} == set(LENGTHS["question"])
    assert len({persona for request in asked for persona in request["personas"]}) > 120


def test_code_is_asked_about_in_english_and_in_one_call() -> None:
    code = [PLACES[0] | {"code": True, "language": "python"}]
    (asked,) = requests("retrieval", BOTH, range(1), seed=3, knobs=Knobs(calls=2), seeds=code)
    assert (asked["language"], asked["document_language"], asked["calls"]) == ("eng", "python", 1)


def test_so_many_queries_are_in_another_language_than_the_document() -> None:
    knobs = Knobs(languages=("eng", "deu"), cross_lingual=0.3)
    asked = requests("retrieval", BOTH, range(600), seed=3, knobs=knobs, seeds=PLACES)
    crossed = [request for request in asked if request["language"] != request["document_language"]]
    assert 140 < len(crossed) < 220
    assert {request["language"] for request in crossed} == {"deu"}
    # An LLM that writes one language only is not asked for another.
    alone = requests("retrieval", ENGLISH, range(600), seed=3, knobs=knobs, seeds=PLACES)
    assert {request["language"] for request in alone} == {"eng"}


def test_an_llm_gets_the_languages_that_it_writes() -> None:
    knobs = Knobs(languages=("eng", "deu", "fra"), language_temperature=5.0)
    asked = requests("sts", BOTH, range(200), seed=0, knobs=knobs)
    assert {request["language"] for request in asked} == {"eng", "deu"}
    with pytest.raises(UserError, match="LLM One writes eng") as caught:
        requests("sts", ENGLISH, range(1), seed=0, knobs=Knobs(languages=("fra",)))
    assert caught.value.exit_status == 2
    for kind in ("bitext", "translation"):
        with pytest.raises(UserError, match="besides eng"):
            requests(kind, ENGLISH, range(1), seed=0, knobs=BILINGUAL, seeds=PLACES)


def test_sides_of_a_bitext_are_in_two_languages() -> None:
    for asked in requests("bitext", BOTH, range(50), seed=0, knobs=BILINGUAL):
        assert {asked["language"], asked["document_language"]} == {"eng", "deu"}


def test_samples_take_labels_of_the_task() -> None:
    asked = requests("classification", ENGLISH, range(12), seed=0, knobs=Knobs(), seeds=TASKS)
    assert [request["task_id"] for request in asked[:4]] == ["t0", "t1", "t0", "t1"]
    assert {request["label"] for request in asked} == set("abcde")
    assert all(request["label"] in request["labels"] for request in asked)
    unlabelled = [{**TASKS[0], "labels": []}]
    (one,) = requests("classification", ENGLISH, range(1), seed=0, knobs=Knobs(), seeds=unlabelled)
    assert (one["labels"], one["label"]) == ([], None)


@pytest.mark.parametrize("shape", SHAPES)
def test_lengths_follow_the_shape_of_the_task(shape: str) -> None:
    tasks = [{**TASKS[0], "shape": shape}]
    knobs = Knobs(long_words=(50, 400))
    for asked in requests("scratch", ENGLISH, range(9), seed=0, knobs=knobs, seeds=tasks):
        for side, words in zip(
            shape.split("_"), (asked["query_words"], asked["document_words"]), strict=True
        ):
            assert (words in ("50 words", "400 words")) == (side == "long")


def test_tasks_are_given_to_other_llms_once_and_in_an_order_of_their_own() -> None:
    tasks = [
        {**TASK, "task_id": f"x{i}", "instruction": f"Find text {i // 2}.", "labels": []}
        for i in range(40)
    ]
    tasks[6]["language"], tasks[7]["language"] = "fra", "fra"
    tasks[8]["kind"], tasks[9]["kind"] = "clustering", "clustering"
    tasks[10]["llm"], tasks[11]["llm"] = "One", "One"
    one = [task["task_id"] for task in given_tasks(ENGLISH, tasks, kind="scratch", alone=False)]
    two = [task["task_id"] for task in given_tasks(BOTH, tasks, kind="scratch", alone=False)]
    assert sorted(one) == sorted(f"x{i}" for i in range(0, 40, 2) if i not in (6, 8, 10))
    assert set(two) == {*one, "x10"} and two != sorted(two)
    assert [task for task in two if task != "x10"] != one
    assert len(given_tasks(ENGLISH, tasks, kind="scratch", alone=True)) == 18


def test_llms_start_at_topics_of_their_own_and_every_kind_meets_every_topic() -> None:
    knobs = Knobs(languages=("eng", "deu"), task_kinds=TASK_KINDS, tasks_per_call=5)
    count = len(TASK_KINDS) * len(lines("topics.txt"))
    one = requests("tasks", ENGLISH, range(count), seed=0, knobs=knobs)
    two = requests("tasks", BOTH, range(count), seed=0, knobs=knobs)
    assert one[0]["topic"] != two[0]["topic"]
    assert {request["language"] for request in two} == {"eng", "deu"}
    assert len({(asked["kind"], asked["shape"], asked["topic"]) for asked in one}) == count
    assert {asked["labels"] for asked in one if asked["kind"] != "classification"} == {0}
    assert {asked["labels"] for asked in one if asked["kind"] == "classification"} == {2, 3, 4, 5}


@pytest.mark.parametrize(
    "knobs",
    [
        {"languages": ("germn",)},
        {"languages": ()},
        {"cross_lingual": 1.5},
        {"calls": 3},
        {"task_kinds": ("poetry",)},
        {"programming_languages": ("klingon",)},
        {"language_temperature": 0.0},
        {"long_words": ()},
        {"tasks_per_call": 0},
    ],
)
def test_bad_knobs_are_told_at_once(knobs: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        Knobs(**knobs)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("name", "least"),
    [("personas.txt", 200), ("subjects.txt", 80), ("topics.txt", 60), ("code_subjects.txt", 40)],
)
def test_lists_to_draw_from_hold_each_entry_once(name: str, least: int) -> None:
    entries = lines(name)
    assert len(entries) >= least and len(set(entries)) == len(entries)
    assert all(entry == entry.strip() and entry for entry in entries)
    assert all(text_problem(entry) in (None, "too_short") for entry in entries)


@given(st.text(max_size=20), st.integers(1, 9))
def test_a_key_decides(key: str, count: int) -> None:
    choices = list(range(9))
    some = draw_some(key, choices, count)
    assert some == draw_some(key, choices, count)
    assert len(set(some)) == count
    assert 0 <= fraction(key) < 1
