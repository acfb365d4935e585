"""Each loss against numbers worked out by hand, and its gradient against its slope."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trainer.loss import (
    LOSSES,
    Batch,
    below_share,
    contrastive,
    embedding_cosine,
    embedding_mse,
    margin_mse,
    matryoshka,
    matryoshka_widths,
    not_relevant,
    row_scores,
    score_kl,
)

T = 0.5


def turned(*degrees: float) -> Tensor:
    """Vectors of the plane at these angles: their cosines are those of the differences."""
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], -1)


def batch_of(queries: Tensor, documents: Tensor, **facts: Tensor) -> Batch:
    """A batch [B, D], [B, S, D] in which nothing is known of the texts but that they differ."""
    rows, width = documents.shape[:2]
    keys = torch.arange(rows * width).view(rows, width, 1)
    known: dict[str, Tensor] = {
        "exists_BS": torch.ones(rows, width, dtype=torch.bool),
        "in_batch_B": torch.ones(rows, dtype=torch.bool),
        "query_key_B": torch.arange(rows),
        "document_key_BSK": keys,
        "known_BK": keys[:, 0],
        "teacher_BS": torch.full((rows, width), math.nan),
    }
    return Batch(query_BD=queries, document_BSD=documents, **{**known, **facts})


# Two queries at 0 and 90 degrees; positives 30 degrees off; a negative 60 degrees off each.
QUERIES = turned(0, 90)
DOCUMENTS = torch.stack([turned(30, -60), turned(120, 150)])
BATCH = batch_of(QUERIES, DOCUMENTS)


def e(degrees: float) -> float:
    return math.exp(math.cos(math.radians(degrees)) / T)


OWN, NEGATIVE = e(30), e(60)
BY_HAND = {  # the terms of the denominator for each of the two queries
    "nemotron": ([OWN, NEGATIVE], [OWN, NEGATIVE]),
    "nv_retriever": ([OWN, NEGATIVE], [OWN, NEGATIVE]),
    "gecko": ([OWN, NEGATIVE, e(120), e(90)], [OWN, NEGATIVE, e(60), e(90)]),
    "gemini": ([OWN, NEGATIVE, e(120)], [OWN, NEGATIVE, e(60)]),
    "qwen3": ([OWN, NEGATIVE, e(120), e(90), e(90)], [OWN, NEGATIVE, e(60), e(90), e(90)]),
    "all": ([OWN, NEGATIVE, e(120), e(150)], [OWN, NEGATIVE, e(60), e(150)]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_losses_of_two_queries_by_hand(name):
    value, accuracy = contrastive(BATCH, LOSSES[name], temperature=T)
    assert value.tolist() == pytest.approx([-math.log(OWN / sum(z)) for z in BY_HAND[name]])
    assert accuracy.tolist() == [1.0, 1.0]


def test_f2llm_adds_a_hard_and_an_in_batch_loss():
    value, _ = contrastive(BATCH, LOSSES["f2llm"], temperature=T)
    hard = -math.log(OWN / (OWN + NEGATIVE))
    in_batch = [-math.log(OWN / (OWN + other)) for other in (e(120), e(60))]
    assert value.tolist() == pytest.approx([hard + in_batch[0], hard + in_batch[1]])
    # Rows that are no retrieval have the hard loss alone.
    apart = replace(BATCH, in_batch_B=torch.tensor([False, True]))
    value, _ = contrastive(apart, LOSSES["f2llm"], temperature=T)
    assert value.tolist() == pytest.approx([hard, hard + in_batch[1]])


def test_kalm_weighs_rows_by_what_they_lack():
    value, _ = contrastive(BATCH, LOSSES["kalm"], temperature=T)
    shares = [OWN / sum(z) for z in BY_HAND["gemini"]]
    assert value.tolist() == pytest.approx([-math.log(p) * math.sqrt(1 - p) for p in shares])


def test_a_row_that_kalm_has_solved_has_no_gradient():
    queries = turned(0, 180).float().requires_grad_()
    documents = torch.stack([turned(0, 180), turned(180, 0)]).float()
    value, _ = contrastive(batch_of(queries, documents), LOSSES["kalm"], temperature=0.001)
    value.sum().backward()
    assert value.tolist() == [0.0, 0.0]
    assert queries.grad is not None and queries.grad.abs().max() == 0.0


def test_what_qwen3_scores_above_the_margin_is_no_negative():
    # cos 30 = 0.87, cos 0 = 1: above by 0.13; cos 20 = 0.94: above by 0.07.
    far, near = (batch_of(QUERIES[:1], turned(30, d)[None]) for d in (0, 20))
    assert contrastive(far, LOSSES["qwen3"], temperature=T)[0].item() == 0.0
    value = contrastive(near, LOSSES["qwen3"], temperature=T)[0].item()
    assert value == pytest.approx(-math.log(OWN / (OWN + e(20))))
    assert contrastive(far, LOSSES["nemotron"], temperature=T)[0].item() > 0.0


def test_what_the_teacher_scores_near_the_positive_is_no_negative():
    scores = torch.tensor([[0.8, 0.77], [0.8, 0.75]])  # limit 0.76
    value, _ = contrastive(replace(BATCH, teacher_BS=scores), LOSSES["nv_retriever"], temperature=T)
    assert value.tolist() == pytest.approx([0.0, -math.log(OWN / (OWN + NEGATIVE))])


def test_the_limit_of_a_share_is_below_a_negative_score_too():
    positive = torch.tensor([[1.0], [-1.0]])
    negative = torch.tensor([[0.94, 0.96, math.nan], [-1.06, -1.04, math.nan]])
    assert below_share(positive, negative, 0.95).tolist() == [[True, False, True]] * 2


def test_known_documents_of_other_rows_are_no_negatives():
    # The positive of row 1 is in the cluster (key 77) of a positive of row 0.
    keys = torch.tensor([[[0, 70], [1, 71]], [[2, 77], [3, 73]]])
    known = torch.tensor([[0, 77], [2, 77]])
    batch = replace(BATCH, document_key_BSK=keys, known_BK=known)
    value, _ = contrastive(batch, LOSSES["gemini"], temperature=T)
    alone, _ = contrastive(BATCH, LOSSES["nemotron"], temperature=T)
    both, _ = contrastive(BATCH, LOSSES["gemini"], temperature=T)
    assert value.tolist() == [alone[0].item(), both[1].item()]
    assert not_relevant(known, keys[:, 0]).tolist() == [[False, False], [True, False]]


def test_rows_with_the_same_query_are_no_negatives_of_each_other():
    twins = replace(BATCH, query_key_B=torch.tensor([5, 5]))
    for name in ("gecko", "gemini", "qwen3", "all"):
        value, _ = contrastive(twins, LOSSES[name], temperature=T)
        assert value.tolist() == pytest.approx([-math.log(OWN / (OWN + NEGATIVE))] * 2), name


def test_a_wrong_document_ahead_costs_accuracy_and_a_missing_one_nothing():
    documents = torch.stack([turned(30, 10), turned(120, 90)])
    batch = batch_of(QUERIES, documents, exists_BS=torch.tensor([[True, True], [True, False]]))
    value, accuracy = contrastive(batch, LOSSES["nemotron"], temperature=T)
    assert accuracy.tolist() == [0.0, 1.0]
    assert value.tolist() == pytest.approx([-math.log(OWN / (OWN + e(10))), 0.0])


def test_some_rows_of_a_batch_have_the_values_they_have_in_the_whole():
    torch.manual_seed(0)
    batch = batch_of(torch.randn(5, 8), torch.randn(5, 3, 8))
    for name, loss in LOSSES.items():
        whole, _ = contrastive(batch, loss, temperature=T)
        parts = [
            contrastive(batch, loss, temperature=T, rows=r)[0] for r in (slice(2), slice(2, 5))
        ]
        torch.testing.assert_close(torch.cat(parts), whole, msg=name)


def test_length_of_a_vector_does_not_matter():
    longer = replace(BATCH, query_BD=7 * QUERIES, document_BSD=0.1 * DOCUMENTS)
    for name, loss in LOSSES.items():
        values = [contrastive(batch, loss, temperature=T)[0] for batch in (BATCH, longer)]
        torch.testing.assert_close(*values, msg=name)


def test_matryoshka_by_hand():
    assert matryoshka_widths(20) == [20, 16, 8]
    assert matryoshka_widths(16) == [16, 8]
    torch.manual_seed(0)
    batch = batch_of(torch.randn(3, 16), torch.randn(3, 2, 16))
    value, _ = matryoshka(batch, LOSSES["gemini"], widths=[16, 8], temperature=T)
    full, half = (
        contrastive(batch.truncated(d), LOSSES["gemini"], temperature=T)[0] for d in (16, 8)
    )
    torch.testing.assert_close(value, full + half / (2 * math.sqrt(2)))


def test_distillation_by_hand():
    exists = torch.tensor([[True, True, False]])
    student, teacher = torch.tensor([[[0.9, 0.4, 0.0]], [[0.8, 0.6, 0.0]]], dtype=torch.float64)
    assert margin_mse(student, teacher, exists).tolist() == pytest.approx([(0.5 - 0.2) ** 2])
    p = 1 / (1 + math.exp(-0.2 / T))
    q = 1 / (1 + math.exp(-0.5 / T))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert score_kl(student, teacher, exists, temperature=T).tolist() == pytest.approx([expected])
    texts = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    wider = torch.tensor([[[0.0, 0.0, 7.0], [3.0, 6.0, 7.0], [0.0, 0.0, 7.0]]])
    assert embedding_mse(texts, wider, exists).tolist() == [2.5 + 2.0]
    angles = (turned(0, 90, 0)[None], turned(60, 90, 180)[None])  # the last text does not exist
    assert embedding_cosine(*angles, exists).tolist() == pytest.approx([0.5 + 0.0])
    assert row_scores(BATCH).flatten().tolist() == pytest.approx(
        [math.cos(math.radians(d)) for d in (30, 60, 30, 60)]
    )


def gradient_is_slope(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> bool:
    torch.manual_seed(1)
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return torch.autograd.gradcheck(function, tensors)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_slopes(name):
    facts = {
        "exists_BS": torch.tensor([[True] * 3, [True, True, False], [True] * 3]),
        "teacher_BS": torch.tensor([[0.9, 0.5, 0.89]] * 3),
    }
    assert gradient_is_slope(
        lambda q, d: matryoshka(
            batch_of(q, d, **facts), LOSSES[name], widths=[4, 2], temperature=T
        )[0],
        (3, 4), (3, 3, 4),
    )  # fmt: skip


@pytest.mark.parametrize("distance", [score_kl, margin_mse])
def test_gradients_of_distillation_are_slopes(distance):
    torch.manual_seed(2)
    teacher = torch.randn(3, 3, dtype=torch.float64)
    exists = torch.tensor([[True] * 3, [True, True, False], [True] * 3])
    assert gradient_is_slope(lambda s: distance(s, teacher, exists), (3, 3))
    wide = torch.randn(3, 3, 6, dtype=torch.float64)
    assert gradient_is_slope(lambda s: embedding_mse(s, wide, exists), (3, 3, 4))
    assert gradient_is_slope(lambda s: embedding_cosine(s, wide, exists), (3, 3, 4))
