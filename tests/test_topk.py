"""Exact top-k against a plain numpy sort, on vectors with many ties."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.schema import UserError
from datagen.topk import Excluded, dot, top_k


def unit_vectors(count: int, width: int, seed: int, *, dtype=np.float16) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype)


def brute_force(queries, documents, k, ceilings, barred):
    """All scores at once, in float64; (rows, scores, above) as lists."""
    scores = (queries.astype(np.float64) @ documents.astype(np.float64).T).astype(np.float32)
    found = []
    for q, row in enumerate(scores):
        eligible = [d for d in range(len(documents)) if (q, d) not in barred]
        kept = [d for d in eligible if row[d] <= ceilings[q]]
        best = sorted(kept, key=lambda d: (-row[d], d))[:k]
        found.append((best, [row[d] for d in best], len(eligible) - len(kept)))
    return found


def as_lists(result):
    return [
        (rows[rows >= 0].tolist(), scores[rows >= 0].tolist(), above)
        for rows, scores, above in zip(result.rows, result.scores, result.above, strict=True)
    ]


def test_best_first_under_the_ceiling_without_the_excluded():
    documents = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1], [-1, 0]], dtype=np.float32)
    query = np.array([[1, 0]], dtype=np.float32)
    result = top_k(
        query,
        documents,
        k=3,
        ceilings=np.array([0.9]),
        excluded=Excluded.of(np.array([0]), np.array([2])),
    )
    assert result.rows.tolist() == [[1, 3, 4]]
    assert result.scores.tolist() == [[np.float32(0.8), 0.0, -1.0]]
    assert result.above.tolist() == [1]


def test_the_ceiling_is_exact_to_the_last_bit():
    query, documents = np.float32([[1, 0]]), np.float32([[0.8, 0.6], [0.6, 0.8]])
    at, below = np.float32(0.8), np.nextafter(np.float32(0.8), np.float32(0))
    ceilings = np.array([at, below], dtype=np.float64)
    result = top_k(query.repeat(2, axis=0), documents, k=1, ceilings=ceilings)
    assert result.rows.tolist() == [[0], [1]]
    assert result.above.tolist() == [0, 1]


def test_fewer_documents_than_asked_leaves_minus_one():
    result = top_k(unit_vectors(2, 4, 0), unit_vectors(3, 4, 1), k=5)
    assert (result.rows[:, 3:] == -1).all() and (result.scores[:, 3:] == -np.inf).all()
    assert sorted(result.rows[0, :3].tolist()) == [0, 1, 2]


def test_scores_that_are_not_numbers_are_refused():
    broken = unit_vectors(3, 4, 1)
    broken[1, 2] = np.nan
    with pytest.raises(UserError, match="unit length"):
        top_k(unit_vectors(2, 4, 0), broken, k=1)
    with pytest.raises(UserError, match="unit length"):
        top_k(broken, unit_vectors(2, 4, 0), k=1)


def test_the_search_needs_neither_ray_nor_polars():
    code = (
        "import sys, datagen.topk, datagen.vectors as v; print({'ray', 'polars'} & {*sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_no_documents_at_all():
    result = top_k(unit_vectors(2, 4, 0), np.empty((0, 4), np.float16), k=2)
    assert (result.rows == -1).all() and result.above.tolist() == [0, 0]


def test_equal_scores_go_to_the_smaller_row_however_many_there_are():
    documents = np.repeat(unit_vectors(3, 8, 5), 200, axis=0)  # 200 copies of each of three
    result = top_k(unit_vectors(4, 8, 6), documents, k=10, query_block=2, document_block=128)
    assert (np.diff(result.rows, axis=1) == 1).all()
    assert set((result.rows[:, 0] % 200).tolist()) == {0}


def test_vectors_that_are_not_of_unit_length_are_refused():
    with pytest.raises(UserError, match="unit length"):
        top_k(2 * unit_vectors(2, 4, 0), unit_vectors(3, 4, 1), k=1)


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(1, 12),
    documents=st.integers(1, 90),
    copies=st.integers(1, 4),
    k=st.integers(1, 12),
    seed=st.integers(0, 10_000),
    blocks=st.tuples(st.integers(1, 7), st.sampled_from([1, 5, 64, 1000])),
    ceiling=st.floats(-0.9, 1.1),
    kind=st.sampled_from(
        [
            (np.float16, "float32"),
            (np.float16, "float16"),
            (np.float16, "bfloat16"),
            (np.float32, "float32"),
            (np.float32, "bfloat16"),
        ]
    ),
)
def test_equals_brute_force(queries, documents, copies, k, seed, blocks, ceiling, kind):
    dtype, precision = kind
    left = unit_vectors(queries, 6, seed, dtype=dtype)
    right = np.repeat(unit_vectors(documents, 6, seed + 1, dtype=dtype), copies, axis=0)
    draw = np.random.default_rng(seed)
    ceilings = ceiling + draw.normal(0, 0.1, queries)
    pairs = draw.integers(0, (queries, len(right)), (2 * queries, 2))
    result = top_k(
        left,
        right,
        k=k,
        ceilings=ceilings,
        excluded=Excluded.of(pairs[:, 0], pairs[:, 1]),
        precision=precision,
        query_block=blocks[0],
        document_block=blocks[1],
    )
    barred = {tuple(pair) for pair in pairs.tolist()}
    assert as_lists(result) == brute_force(left, right, k, ceilings, barred)


def test_a_large_pool_in_any_blocks_gives_the_same_bits():
    left, right = unit_vectors(50, 64, 1), unit_vectors(9000, 64, 2)
    results = [
        top_k(left, right, k=24, query_block=q, document_block=d)
        for q, d in ((50, 9000), (16, 4096), (7, 640))
    ]
    results.append(top_k(left, right, k=24, precision="float16"))  # what a GPU does
    reference = brute_force(left, right, 24, np.full(50, np.inf), set())
    for result in results:
        assert as_lists(result) == reference


@pytest.mark.gpu
def test_the_gpu_gives_the_bits_of_the_cpu():
    left, right = unit_vectors(300, 384, 1), unit_vectors(40_000, 384, 2)
    ceilings = np.full(300, 0.1)
    here = top_k(left, right, k=24, ceilings=ceilings)
    there = top_k(left, right, k=24, ceilings=ceilings, device="cuda")
    assert as_lists(here) == as_lists(there)


def test_float16_scores_are_exact():
    left, right = unit_vectors(1, 384, 3), unit_vectors(1, 384, 4)
    exact = sum(float(a) * float(b) for a, b in zip(left[0], right[0], strict=True))
    assert dot(left, right, (np.array([0]), np.array([0])))[0] == np.float32(exact)
