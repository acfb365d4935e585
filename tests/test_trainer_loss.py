"""The contrastive loss against numbers worked out by hand, and its gradient against its slope."""

import math

import pytest
import torch

from trainer.loss import hard_negative_infonce

torch.manual_seed(0)


def test_loss_of_two_queries_by_hand():
    # Cosines: the first query 0.8 with its positive, 0.6 and 0 with its negatives.
    query = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    positive = torch.tensor([[0.8, 0.6], [1.0, 0.0]])
    negatives = torch.tensor([[[0.6, 0.8], [0.0, 1.0]], [[0.0, 3.0], [1.0, 0.0]]])
    mask = torch.tensor([[True, True], [True, False]])

    loss, accuracy = hard_negative_infonce(query, positive, negatives, mask, temperature=0.2)

    first = -math.log(math.exp(4) / (math.exp(4) + math.exp(3) + math.exp(0)))
    second = -math.log(math.exp(0) / (math.exp(0) + math.exp(5)))  # the masked negative is no rival
    assert loss.tolist() == pytest.approx([first, second], rel=1e-5)
    assert accuracy.tolist() == [1.0, 0.0]


def test_length_of_a_vector_does_not_matter():
    query, positive, negatives = torch.randn(3, 8), torch.randn(3, 8), torch.randn(3, 4, 8)
    mask = torch.ones(3, 4, dtype=torch.bool)
    loss, _ = hard_negative_infonce(query, positive, negatives, mask)
    longer, _ = hard_negative_infonce(7 * query, 0.1 * positive, 3 * negatives, mask)
    torch.testing.assert_close(loss, longer)


def test_other_queries_of_the_batch_are_no_negatives():
    query, positive, negatives = torch.randn(5, 8), torch.randn(5, 8), torch.randn(5, 2, 8)
    mask = torch.ones(5, 2, dtype=torch.bool)
    whole, _ = hard_negative_infonce(query, positive, negatives, mask)
    parts = [
        hard_negative_infonce(query[i : i + 1], positive[i : i + 1], negatives[i : i + 1], mask[:1])
        for i in range(5)
    ]
    torch.testing.assert_close(whole, torch.cat([loss for loss, _ in parts]))


def test_gradient_is_the_slope_of_the_loss():
    torch.manual_seed(1)
    shapes = ((3, 4), (3, 4), (3, 2, 4))
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    mask = torch.tensor([[True, True], [True, False], [True, True]])

    def mean_loss(*embeddings: torch.Tensor) -> torch.Tensor:
        return hard_negative_infonce(*embeddings, mask, temperature=0.5)[0].double().mean()

    # The loss computes in fp32, hence the coarse step.
    assert torch.autograd.gradcheck(mean_loss, tensors, eps=1e-2, atol=2e-3, rtol=2e-2)


def test_masked_negatives_get_no_gradient():
    query, positive = torch.randn(1, 4), torch.randn(1, 4)
    negatives = torch.randn(1, 3, 4, requires_grad=True)
    mask = torch.tensor([[True, False, True]])
    hard_negative_infonce(query, positive, negatives, mask, temperature=1.0)[0].sum().backward()
    assert negatives.grad is not None
    assert negatives.grad[0].abs().sum(dim=1).gt(0).tolist() == [True, False, True]
