"""From the rows of a batch to the gradient: texts once each, keys of what is known, loss, chunks.

Equal texts of a process are embedded once. A loss whose rows do not see each other (hard negatives
only) is added up over micro-batches of rows, which is the gradient of the whole batch exactly; one
with in-batch negatives takes all rows of all processes at once, through GradCache.

Rows are looked up with `F.embedding`, never by indexing: the backward of an index adds with atomics
on several threads, in an order that differs from run to run.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data import Example
from trainer.distributed import gather, largest, own_rows, part_sizes, world_size
from trainer.gradcache import backward
from trainer.loss import (
    LOSSES,
    Batch,
    embedding_cosine,
    embedding_mse,
    margin_mse,
    matryoshka,
    matryoshka_widths,
    row_scores,
    score_kl,
)
from trainer.packed import unmarked

_OF_VECTORS = {"embedding": embedding_mse, "cosine": embedding_cosine}
Row = Sequence[list[int]]  # token ids of query, positive, negatives


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised: a contrastive loss, at several widths if asked for, and distillation."""

    loss: str = "nemotron"
    temperature: float = 0.02
    matryoshka: bool = False
    distill: str | None = None  # kl, margin (the mix's scores), embedding, cosine (of a teacher)
    distill_weight: float = 1.0

    @property
    def in_batch(self) -> bool:
        return LOSSES[self.loss].in_batch

    def values(
        self, batch: Batch, rows: slice, *, teacher_RSE: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss and accuracy@1 [R] of some rows of a batch."""
        width = batch.query_BD.shape[-1]
        loss_R, accuracy_R = matryoshka(
            batch,
            LOSSES[self.loss],
            widths=matryoshka_widths(width) if self.matryoshka else [width],
            temperature=self.temperature,
            rows=rows,
        )
        if self.distill is None:
            return loss_R, accuracy_R
        return loss_R + self.distill_weight * self._distilled(batch, rows, teacher_RSE), accuracy_R

    def _distilled(self, batch: Batch, rows: slice, teacher_RSE: Tensor | None) -> Tensor:
        exists_RS = batch.exists_BS[rows]
        if self.distill in _OF_VECTORS:
            assert teacher_RSE is not None
            own_RSD = torch.cat([batch.query_BD[rows, None], batch.document_BSD[rows]], 1)
            exists_RS = torch.cat([torch.ones_like(exists_RS[:, :1]), exists_RS], 1)
            return _OF_VECTORS[self.distill](own_RSD, teacher_RSE, exists_RS)
        exists_RS = exists_RS & batch.teacher_BS[rows].isfinite()
        teacher_RS = batch.teacher_BS[rows].nan_to_num()
        compare = {"kl": score_kl, "margin": margin_mse}[self.distill or ""]
        return compare(row_scores(batch, rows), teacher_RS, exists_RS) * exists_RS[:, 0]


class Figures(NamedTuple):
    """Of the rows of this process: losses, how many are ranked right, tokens embedded."""

    losses: list[float]
    hits: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Adds up the gradient of a batch; `encoder` and `teacher` embed lists of token ids.

    A `cached` teacher has the vectors of texts, whatever its tokenizer.
    At most `micro_tokens` tokens have activations at once, except where one row alone has more.
    """

    encoder: Any
    device: torch.device
    objective: Objective
    micro_tokens: int
    pad_id: int
    teacher: Any = None
    cached: Callable[[Sequence[str]], Tensor] | None = None

    def add(
        self, examples: Sequence[Example], ids: Sequence[Row], *, count: int, negatives: int
    ) -> Figures:
        """Add the gradient of the mean loss over `count` rows, of which these are ours."""
        if self.objective.in_batch:
            groups = [slice(0, len(ids))]
        else:
            groups = list(cut([sum(map(len, row)) for row in ids], self.micro_tokens))
            groups += [slice(0, 0)] * (largest(len(groups)) - len(groups))
        losses: list[Tensor] = []
        hits: list[Tensor] = []
        tokens = 0
        for number, group in enumerate(groups):
            part = _Part(self, examples[group], ids[group], count=count, negatives=negatives)
            chunks = part.chunks(self.micro_tokens if self.objective.in_batch else None)
            most = largest(len(chunks)) if self.objective.in_batch else 1
            last = number + 1 == len(groups)
            backward(self.encoder, chunks, part.loss, count=most, last=last)
            losses.append(part.loss_R)
            hits.append(part.accuracy_R)
            tokens += sum(map(len, unmarked(part.texts)[1])) if part.size else 0
        return Figures(torch.cat(losses).tolist(), torch.cat(hits).sum().item(), tokens)


class _Part:
    """The rows of one backward pass: their texts, and their loss as a function of embeddings."""

    def __init__(
        self,
        setup: Gradients,
        examples: Sequence[Example],
        ids: Sequence[Row],
        *,
        count: int,
        negatives: int,
    ):
        self.setup, self.count, self.size = setup, count, len(ids)
        # A process without rows still takes part in exchanges, with a text that counts nothing.
        found = sorted({tuple(text) for row in ids for text in row}, key=lambda t: (len(t), t))
        self.texts = found or [(setup.pad_id,)]
        if setup.cached is not None:
            self.strings = _strings(examples, ids)
        self.index_RS = _index(self.texts, ids, width=2 + negatives).to(setup.device)
        in_batch = setup.objective.in_batch
        facts = _facts(examples, ids, negatives=negatives, in_batch=in_batch)
        self.facts = {name: value.to(setup.device) for name, value in facts.items()}
        self.rows = slice(0, len(ids))
        if in_batch:
            self.sizes, self.rows = part_sizes(count), own_rows(count)
            self.facts = {name: gather(value, self.sizes) for name, value in self.facts.items()}
        self.loss_R = self.accuracy_R = torch.zeros(0)

    def chunks(self, budget: int | None) -> list[list[tuple[int, ...]]]:
        """The texts in runs of at most `budget` tokens; None: all together."""
        if budget is None:
            return [self.texts]
        return [self.texts[run] for run in cut(list(map(len, self.texts)), budget)]

    def loss(self, embeddings_UD: Tensor) -> Tensor:
        """What this process adds to the mean loss of the batch, for gradients that are averaged."""
        setup = self.setup
        rows_RSD = F.embedding(self.index_RS, embeddings_UD)
        all_BSD = gather(rows_RSD, self.sizes) if setup.objective.in_batch else rows_RSD
        batch = Batch(query_BD=all_BSD[:, 0], document_BSD=all_BSD[:, 1:], **self.facts)
        loss_R, accuracy_R = setup.objective.values(batch, self.rows, teacher_RSE=self._teacher())
        self.loss_R, self.accuracy_R = loss_R.detach(), accuracy_R
        return loss_R.sum() * (world_size() / self.count)

    @torch.no_grad()
    def _teacher(self) -> Tensor | None:
        if self.setup.cached is not None:
            vectors = self.setup.cached([self.strings.get(text, "") for text in self.texts])
            return F.embedding(self.index_RS, vectors)
        if self.setup.teacher is None:
            return None
        chunks = self.chunks(self.setup.micro_tokens)
        return F.embedding(self.index_RS, torch.cat([self.setup.teacher(c) for c in chunks]))


def cut(tokens: Sequence[int], budget: int) -> Iterator[slice]:
    """Runs of rows or texts with at most `budget` tokens together; a longer one stands alone."""
    begin = total = 0
    for i, count in enumerate(tokens):
        if i > begin and total + count > budget:
            yield slice(begin, i)
            begin, total = i, 0
        total += count
    yield slice(begin, len(tokens))


def _strings(examples: Sequence[Example], ids: Sequence[Row]) -> dict[tuple[int, ...], str]:
    """The text that token ids were made of; of several that were cut to the same ids, one."""
    pairs = zip(examples, ids, strict=True)
    return {tuple(t): s for e, row in pairs for s, t in zip(e.texts, row, strict=True)}


def _index(texts: Sequence[tuple[int, ...]], ids: Sequence[Row], *, width: int) -> Tensor:
    """Numbers of the texts [R, width] of each row, filled up with its query."""
    place = {text: i for i, text in enumerate(texts)}
    rows = [[place[tuple(t)] for t in [*row, *[row[0]] * (width - len(row))]] for row in ids]
    return torch.tensor(rows, dtype=torch.long).view(len(ids), width)


def _facts(
    examples: Sequence[Example], ids: Sequence[Row], *, negatives: int, in_batch: bool
) -> dict[str, Tensor]:
    """What a batch knows beside the embeddings; see `trainer.loss.Batch`.

    Numbers of documents are even keys, hashes of clusters odd ones.
    """
    width = 1 + negatives
    known = [[2 * n for n in e.known] + [_key(c) for c in e.clusters[:1] if c] for e in examples]
    most = max(map(len, known), default=1)
    most = largest(most) if in_batch else most
    documents = [
        [[2 * n, _key(c)] for n, c in zip(e.documents, e.clusters, strict=True)] for e in examples
    ]
    scores = [[*e.scores, *[math.nan] * (width - len(e.scores))] for e in examples]
    empty = [-1, -1]
    return {
        "exists_BS": torch.tensor(
            [[s + 1 < len(row) for s in range(width)] for row in ids], dtype=torch.bool
        ).view(-1, width),
        "in_batch_B": torch.tensor([e.in_batch for e in examples], dtype=torch.bool),
        "query_key_B": torch.tensor([_key(e.query) for e in examples], dtype=torch.long),
        "document_key_BSK": torch.tensor(
            [[*row, *[empty] * (width - len(row))] for row in documents], dtype=torch.long
        ).view(-1, width, 2),
        "known_BK": torch.tensor(
            [[*row, *[row[0]] * (most - len(row))] for row in known], dtype=torch.long
        ).view(-1, most),
        "teacher_BS": torch.tensor(scores, dtype=torch.float32).view(-1, width),
    }


def _key(text: str | None) -> int:
    """An odd 63-bit number for a text; -1 for none."""
    if text is None:
        return -1
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big") * 2 + 1
