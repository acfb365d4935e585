"""Mining in ranges of the documents, on several workers and nodes, and by several teachers."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hand_made import document, mine_by_hand, query, vectors_by_hand, write_tables
from hand_made import model as model
from hypothesis import given
from hypothesis import strategies as st

from datagen.mine import mine_negatives
from datagen.mining_rules import Rules
from datagen.mining_search import search_units
from datagen.padding import cut, once
from datagen.schema import UserError
from datagen.steps import Step, run_steps
from datagen.store import Folder, read_manifest, read_table
from datagen.topk import TopK, merged, top_k

CLUSTER = """
import os, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(num_cpus=1)
os.environ["RAY_ADDRESS"] = cluster.address
sys.path.insert(0, sys.argv[1])
import ray
from test_mining_search import steps_by_hand
from datagen.steps import run_steps
run_steps(steps_by_hand(sys.argv[2], documents_per_unit=30, actors=3), sys.argv[3], executor="ray")
assert len([node for node in ray.nodes() if node["Alive"]]) == 3
ray.shutdown()
cluster.shutdown()
"""


def steps_by_hand(model, *, documents_per_unit, actors=1, rules=None, **options):
    """Two pools, near-duplicates and given negatives at random; units of twenty queries."""
    draw = np.random.default_rng(8)
    tasks = draw.choice(["retrieval", "sts"], 140).tolist()
    documents = [
        document(f"d{i:03d}", float(draw.uniform(0, 360)), task=task, cluster=f"d{i - i % 2:03d}")
        for i, task in enumerate(tasks[:100])
    ]
    queries = [
        query(
            f"q{i:02d}",
            float(draw.uniform(0, 360)),
            [f"d{draw.integers(100):03d}"],
            task=task,
            given_negatives=[f"d{i:03d}"] if i % 4 == 0 else [],
        )
        for i, task in enumerate(tasks[100:])
    ]
    rows = {"queries": queries, "documents": documents}
    write = partial(write_tables, **rows, rows_per_shard=20)
    deduped = Step(name="deduped", version=1, config={}, inputs={}, work=write)
    vectors = vectors_by_hand(deduped, model, rows)
    mine = mine_negatives(
        deduped,
        encoder=model,
        embedded=vectors,
        rules=rules or Rules(negatives=6),
        documents_per_unit=documents_per_unit,
        queries_per_unit=20,
        actors=actors,
        threads=1,
        **options,
    )
    return [deduped, vectors, mine]


def digests(output):
    folder = Folder(str(output)).folder("steps/mine")
    return [(shard.name, shard.sha256) for shard in read_manifest(folder).shards]


@pytest.mark.parametrize(
    ("rules", "candidates"),
    [
        ({}, 0),
        ({}, 8),
        ({"rank_window": 12, "skip_top": 2}, 0),
        ({"sample_from": 9, "max_score": 0.5}, 10),
        ({"too_few": "pad", "margin": 0.3}, 3),
    ],
)
def test_ranges_of_any_size_give_the_same_bytes(tmp_path, model, rules, candidates):
    found = {}
    for size in (1000, 30, 9):
        steps = steps_by_hand(
            model,
            documents_per_unit=size,
            rules=Rules(negatives=6, **rules),
            candidates=candidates,
        )
        run_steps(steps, str(tmp_path / str(size)), executor="local")
        found[size] = digests(tmp_path / str(size))
    tables = 3 if candidates else 2
    assert len(found[1000]) == 2 * tables  # of 40 queries, what was found in ranges is gone
    assert found[30] == found[9] == found[1000]


def test_a_range_that_was_searched_is_not_searched_again(tmp_path, model, monkeypatch):
    from datagen import mine as module

    searched = []

    class Dying(module.Searcher):
        def __call__(self, unit):
            searched.append((unit["row"], unit["low"]))
            if len(searched) == 6:
                raise KeyboardInterrupt
            return super().__call__(unit)

    steps = steps_by_hand(model, documents_per_unit=30)
    monkeypatch.setattr(module, "Searcher", Dying)
    with pytest.raises(KeyboardInterrupt):
        run_steps(steps, str(tmp_path / "a"), executor="local")
    run_steps(steps, str(tmp_path / "a"), executor="local")
    assert len(searched) == 2 * 4 + 1  # the one that died is the one that came twice
    assert len(set(searched)) == 2 * 4
    run_steps(steps_by_hand(model, documents_per_unit=100), str(tmp_path / "b"), executor="local")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    left = [name for name in (tmp_path / "a/steps/mine").iterdir() if name.name.startswith("found")]
    assert not left


@pytest.mark.slow
def test_three_nodes_give_the_bytes_of_one_process(tmp_path, model):
    here = str(Path(__file__).parent)
    run_steps(
        steps_by_hand(model, documents_per_unit=1000), str(tmp_path / "one"), executor="local"
    )
    command = [sys.executable, "-c", CLUSTER, here, model, str(tmp_path / "three")]
    subprocess.run(command, check=True, capture_output=True)
    assert digests(tmp_path / "three") == digests(tmp_path / "one")


@given(
    cuts=st.lists(st.integers(0, 60), max_size=4),
    k=st.integers(1, 9),
    seed=st.integers(0, 1000),
    ceiling=st.floats(-0.5, 1),
)
def test_the_best_of_the_whole_are_the_best_of_the_best_of_its_parts(cuts, k, seed, ceiling):
    draw = np.random.default_rng(seed)
    left, right = draw.standard_normal((4, 3)), np.repeat(draw.standard_normal((30, 3)), 2, axis=0)
    left, right = (np.float16(v / np.linalg.norm(v, axis=1, keepdims=True)) for v in (left, right))
    limits = np.full(4, ceiling)
    whole = top_k(left, right, k=k, ceilings=limits)
    ends = sorted({0, *cuts, 60})
    parts = []
    for low, high in zip(ends, ends[1:], strict=False):
        part = top_k(left, right[low:high], k=k, ceilings=limits)
        parts.append(TopK(np.where(part.rows < 0, -1, part.rows + low), part.scores, part.above))
    again = merged(parts)
    np.testing.assert_array_equal(again.rows, whole.rows)
    np.testing.assert_array_equal(again.scores, whole.scores)
    np.testing.assert_array_equal(again.above, whole.above)


def test_units_are_queries_by_ranges():
    units = search_units([{"row": 0}, {"row": 5}], 70, 30)
    assert [(u["row"], u["low"], u["high"]) for u in units] == [
        *((0, 0, 30), (0, 30, 60), (0, 60, 70)),
        *((5, 0, 30), (5, 30, 60), (5, 60, 70)),
    ]


# --- several teachers --------------------------------------------------------------------------


def test_a_document_of_two_teachers_is_taken_at_its_first_turn():
    def flat(*rows):
        return tuple(np.array(column) for column in zip(*rows, strict=True))

    first = flat((0, 0, 5), (0, 2, 6), (0, 4, 7))  # ranks 0, 1, 2 of teacher 0 of 2
    second = flat((0, 1, 6), (0, 3, 8), (0, 5, 5))
    _, documents = cut(once([first, second]), 4)
    assert documents.tolist() == [5, 6, 8, 7]  # 5 of both at once, 6 at the second's first turn


def two_teachers(tmp_path, model, **rules):
    """To the first teacher a and b are close to the query, to the second c and d."""
    angles = {"right": (10, 10), "a": (40, 80), "b": (50, 90), "c": (85, 30), "d": (95, 45)}
    documents = [document(name, one) for name, (one, _) in angles.items()]
    rows = {"queries": [query("q", 0, ["right"])], "documents": documents}
    other = [document(name, two) for name, (_, two) in angles.items()]
    write = partial(write_tables, **rows, rows_per_shard=5)
    deduped = Step(name="deduped", version=1, config={}, inputs={}, work=write)
    vectors = vectors_by_hand(deduped, model, rows)
    teacher = vectors_by_hand(deduped, model, {**rows, "documents": other}, name="teacher")
    options = {"embedded": vectors, "teachers": [teacher], "rules": Rules(**rules)}
    mine = mine_negatives(deduped, encoder=model, **options)
    run_steps([deduped, vectors, teacher, mine], str(tmp_path), executor="local")
    (row,) = read_table(Folder(str(tmp_path)).folder("steps/mine"), "mined").to_pylist()
    return row


def test_each_teacher_gives_its_own_top(tmp_path, model):
    mean = two_teachers(tmp_path / "mean", model, negatives=3)
    assert mean["negatives"] == ["c", "a", "b"]
    each = two_teachers(tmp_path / "each", model, negatives=3, teachers="each")
    assert each["negatives"] == ["a", "c", "b"]  # the first of each, then the second
    scores = dict(zip(mean["negatives"], mean["negative_scores"], strict=True))
    assert each["negative_scores"][:2] == [scores["a"], scores["c"]]  # means, in either way


def test_every_teacher_has_a_ceiling_of_its_own(tmp_path, model):
    """0.65 is below cos 40° of a to the first teacher, cos 30° and 45° of c and d to the second."""
    each = two_teachers(tmp_path, model, negatives=4, teachers="each", max_score=0.65)
    assert each["negatives"] == ["b", "a", "c", "d"]  # b, c, d of the first; a, b of the second


def test_candidates_of_each_teacher_have_no_common_score(model):
    deduped = Step(name="deduped", version=1, config={}, inputs={}, work=print)
    with pytest.raises(UserError, match="10 candidates to store"):
        mine_negatives(deduped, encoder=model, rules=Rules(teachers="each"), candidates=10)


def test_what_the_source_gives_is_told_apart(tmp_path, model):
    documents = [document("right", 30), document("wrong", 5), document("near", 60)]
    queries = [query("q", 0, ["right"], given_negatives=["wrong"]), query("r", 0, ["right"])]
    mined, _ = mine_by_hand(tmp_path, model, queries, documents)
    assert (mined["q"]["negatives"], mined["q"]["given_negatives"]) == (["wrong", "near"], 1)
    assert (mined["r"]["negatives"], mined["r"]["given_negatives"]) == (["near"], 0)


def test_vectors_that_are_no_numbers_are_named(tmp_path, model):
    documents = [document("d", 0), document("broken", float("nan"))]
    with pytest.raises(UserError, match="expected: finite vectors of unit length"):
        mine_by_hand(tmp_path, model, [query("q", 0, ["d"])], documents)


def test_without_documents_there_is_nothing_to_mine(tmp_path, model):
    with pytest.raises(UserError, match="has no table 'documents'"):
        mine_by_hand(tmp_path, model, [query("q", 0, ["d"])], [])
