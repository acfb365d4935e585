"""Ways to merge the same tensor of several models, as pure functions.

All take float64 tensors of one shape and weights that sum to 1, and treat each tensor as one
vector. The mean is what llama-embed-nemotron-8b does with six runs (arXiv 2511.07025, section 4),
slerp what Qwen3-Embedding does with checkpoints (arXiv 2506.05176, section 3).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Combine = Callable[[Sequence[Tensor], Sequence[float]], Tensor]

_SMALL = 1e-8  # angles (radians) below which the sphere is flat
_ROUNDS = 100


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean (model soup, arXiv 2203.05482)."""
    total = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor, alpha=weight)
    return total


def slerp(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Between two tensors along the arc between them, at the share of the second (Shoemake 1985).

    A mean is shorter than what it averages where the two point apart; a point of the arc is not.
    """
    first, second = tensors
    angle = _angle(first, second)
    if angle < _SMALL or abs(angle - torch.pi) < _SMALL:
        return weighted_mean(tensors, weights)
    shares = torch.sin(torch.tensor(weights, dtype=torch.float64) * angle) / torch.sin(angle)
    return shares[0] * first + shares[1] * second


def spherical(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted barycentre on the sphere, as long as the tensors are on average.

    Directions are averaged in the tangent space at the last estimate until it stands still (Buss
    and Fillmore 2001); two tensors of one length give their slerp.
    """
    lengths = [tensor.norm() for tensor in tensors]
    if min(lengths) == 0:
        return weighted_mean(tensors, weights)
    units = [tensor / length for tensor, length in zip(tensors, lengths, strict=True)]
    centre = weighted_mean(units, weights)
    if centre.norm() < _SMALL:  # opposite directions have no middle
        return weighted_mean(tensors, weights)
    centre = centre / centre.norm()
    for _ in range(_ROUNDS):
        step = weighted_mean([_tangent(centre, unit) for unit in units], weights)
        length = step.norm()
        if length < _SMALL:
            break
        centre = torch.cos(length) * centre + torch.sin(length) / length * step
        centre = centre / centre.norm()
    mean = sum(w * length for w, length in zip(weights, lengths, strict=True))
    return centre * mean


def task_arithmetic(base: Tensor, *, scale: float) -> Combine:
    """The base and `scale` times the weighted mean of what training changed (arXiv 2212.04089)."""

    def combine(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        return base + scale * weighted_mean([tensor - base for tensor in tensors], weights)

    return combine


def ties(base: Tensor, *, scale: float, density: float) -> Combine:
    """TIES (arXiv 2306.01708): of each model's change the share `density` that is largest, the sign
    that weighs more in each place, and there the mean of the changes that have it."""

    def combine(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        changes = [_trimmed(tensor - base, density) for tensor in tensors]
        sign = torch.sign(weighted_mean(changes, weights))
        total, weight = torch.zeros_like(base), torch.zeros_like(base)
        for change, share in zip(changes, weights, strict=True):
            agrees = (torch.sign(change) == sign) & (sign != 0)
            total += share * change * agrees
            weight += share * agrees
        return base + scale * torch.where(weight > 0, total / weight.clamp(min=1e-300), 0.0)

    return combine


def _trimmed(change: Tensor, density: float) -> Tensor:
    """The largest part of a change, by magnitude; the rest is 0."""
    kept = max(1, round(density * change.numel()))
    smallest = change.abs().flatten().kthvalue(change.numel() - kept + 1).values
    return torch.where(change.abs() >= smallest, change, 0.0)


def _angle(one: Tensor, other: Tensor) -> Tensor:
    lengths = one.norm() * other.norm()
    if lengths == 0:
        return torch.zeros((), dtype=torch.float64)
    return torch.arccos(((one * other).sum() / lengths).clamp(-1, 1))


def _tangent(centre: Tensor, unit: Tensor) -> Tensor:
    """The way from `centre` to `unit` along the sphere: a tangent as long as their angle."""
    cosine = (centre * unit).sum().clamp(-1, 1)
    across = unit - cosine * centre
    length = across.norm()
    return across * (torch.arccos(cosine) / length) if length > _SMALL else across
