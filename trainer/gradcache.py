"""Gradients of a batch that does not fit: embed in chunks, twice (GradCache, arXiv 2101.06983).

A loss with in-batch negatives needs the embeddings of all texts at once, but not their activations.
So all chunks are embedded without a graph; the loss of those embeddings gives the gradient of each
one; and each chunk is embedded again, with a graph, through which its part of that gradient flows.
The result is the gradient of the whole batch. The cost is a second forward pass; where all texts
fit into one chunk there is none.

Chunks are counted over all processes, since sharded models exchange weights in each forward pass: a
process with fewer embeds its last chunk again, with gradient zero.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.distributed import synchronised


def backward(
    embed: Any,
    chunks: Sequence[Any],
    loss: Callable[[Tensor], Tensor],
    *,
    count: int,
    last: bool = True,
) -> None:
    """Add the gradient of `loss(embeddings of all chunks)` to the parameters of `embed`.

    `embed` is a model, wrapped or not, that embeds one chunk; `count` is the largest number of
    chunks of a process. `last`: no further backward pass follows in this step, so processes
    exchange their gradients.
    """
    if count == 1:
        with synchronised(embed, last):
            loss(embed(chunks[0])).backward()
        return
    states, parts = [], []
    for number in range(count):
        chunk = chunks[min(number, len(chunks) - 1)]
        states.append(_random_state())
        with torch.no_grad():
            parts.append(embed(chunk))
    leaf = torch.cat(parts[: len(chunks)]).requires_grad_()
    loss(leaf).backward()
    assert leaf.grad is not None
    gradients = [*leaf.grad.split([len(part) for part in parts[: len(chunks)]])]
    gradients += [torch.zeros_like(part) for part in parts[len(chunks) :]]
    after = _random_state()
    for number in range(count):
        _restore(states[number])  # dropout draws what it drew the first time
        with synchronised(embed, last and number == count - 1):
            embeddings = embed(chunks[min(number, len(chunks) - 1)])
            embeddings.backward(gradients[number].to(embeddings.dtype))
    _restore(after)


def _random_state() -> tuple[Tensor, Tensor | None]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return torch.get_rng_state(), cuda


def _restore(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
