"""Contrastive and distillation losses as pure functions of embeddings: no model, no state.

A loss gives one value for each row (query, positive, negatives); the loss of a batch is their mean.
One InfoNCE serves all papers, since they differ in what stands in its denominator:

    nemotron      own hard negatives only                         arXiv 2511.07025, 3.1
    nv_retriever  the same without those the teacher scores high  arXiv 2407.15831
    gecko         + positives and queries of the other rows       arXiv 2403.20327
    gemini        + positives of the other rows                   arXiv 2503.07891
    qwen3         + positives, queries, positive-positive; what scores 0.1 above the own positive
                  is taken for relevant and left out              arXiv 2506.05176
    f2llm         hard loss + in-batch loss, two sums             arXiv 2510.02294
    kalm          gemini's, each row weighted by (1 - p)^0.5      arXiv 2506.20923
    all           + positives and negatives of the other rows (MultipleNegativesRankingLoss)

Cost: B x C similarities. Shape suffixes: B rows of the batch (of all processes), R rows that the
loss is asked of, N negatives per row, S = 1 + N documents per row, C candidates, K keys, D width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

ALL_ROWS = slice(None)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What stands in the denominator beside the positive; false negatives are always masked."""

    positives: bool = False  # of the other rows
    negatives: bool = False  # of the other rows
    queries: bool = False  # of the other rows, against the query
    pairs: bool = False  # positives of the other rows, against the positive
    apart: bool = False  # own negatives and other rows in two losses that are added
    margin: float = math.inf  # a score this far above the positive's is no negative's
    teacher_share: float = math.inf  # nor is a teacher's score above this share of the positive's
    focal: float = 0.0  # exponent of the weight (1 - p) of a row

    @property
    def in_batch(self) -> bool:
        """Whether the value of a row depends on the other rows."""
        return self.positives or self.negatives or self.queries or self.pairs


LOSSES = {
    "nemotron": Loss(),
    "nv_retriever": Loss(teacher_share=0.95),
    "gecko": Loss(positives=True, queries=True),
    "gemini": Loss(positives=True),
    "qwen3": Loss(positives=True, queries=True, pairs=True, margin=0.1),
    "f2llm": Loss(positives=True, apart=True),
    "kalm": Loss(positives=True, focal=0.5),
    "all": Loss(positives=True, negatives=True),
}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of embeddings with what is known of their texts; documents are positive, negatives.

    Keys are 64-bit integers for query texts, documents and clusters of near-duplicates.
    """

    query_BD: Tensor
    document_BSD: Tensor
    exists_BS: Tensor  # bool: False where a row has fewer negatives than the widest
    in_batch_B: Tensor  # bool: other rows may be negatives (False: classification, clustering)
    query_key_B: Tensor
    document_key_BSK: Tensor  # K ways in which a document is known: its id, its cluster
    known_BK: Tensor  # keys of all documents relevant to the query; repeated where fewer
    teacher_BS: Tensor  # the teacher's scores of the documents; NaN where unknown

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with each tensor put through `function`."""
        return replace(self, **{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def truncated(self, width: int) -> "Batch":
        """The first `width` values of each embedding."""
        query_BD, document_BSD = self.query_BD[..., :width], self.document_BSD[..., :width]
        return replace(self, query_BD=query_BD, document_BSD=document_BSD)


def contrastive(
    batch: Batch, loss: Loss, *, temperature: float = 0.02, rows: slice = ALL_ROWS
) -> tuple[Tensor, Tensor]:
    """InfoNCE of cosines over `temperature`: loss [R], and accuracy@1 [R] (0 or 1).

    Candidates come from the whole batch, values are those of `rows`; a row without candidates has
    loss 0 and no gradient. Computes in fp32, or fp64 where the embeddings are.
    """
    query_BD, document_BSD = _unit(batch.query_BD), _unit(batch.document_BSD)
    own_RS = torch.einsum("rd,rsd->rs", query_BD[rows], document_BSD[rows])
    positive_R1, limit_R1 = own_RS[:, :1], own_RS[:, :1].detach() + loss.margin
    own_RN = _masked(own_RS[:, 1:], _usable(batch, loss, rows) & (own_RS[:, 1:] <= limit_R1))
    others = [
        _masked(score_RC, keep_RC)
        for score_RC, keep_RC in _others(batch, loss, query_BD, document_BSD, limit_R1, rows)
    ]
    blocks = [[own_RN], others] if loss.apart else [[own_RN, *others]]
    value_R = sum(
        (_cross_entropy(torch.cat([positive_R1, *b], 1) / temperature, loss.focal) for b in blocks),
        start=torch.zeros_like(positive_R1[:, 0]),
    )
    rivals_RC = torch.cat([own_RN, *others], 1)
    return value_R, (positive_R1 > rivals_RC).all(1).float()


def _others(
    batch: Batch,
    loss: Loss,
    query_BD: Tensor,
    document_BSD: Tensor,
    limit_R1: Tensor,
    rows: slice,
) -> list[tuple[Tensor, Tensor]]:
    """(scores, mask of what counts) [R, C] of each term over the other rows."""
    if not loss.in_batch:
        return []
    query_RD = query_BD[rows]
    other_RB = batch.query_key_B[rows, None] != batch.query_key_B
    other_RB = other_RB & batch.in_batch_B[rows, None]
    keep_RB = other_RB & not_relevant(batch.known_BK[rows], batch.document_key_BSK[:, 0])
    score_RB = query_RD @ document_BSD[:, 0].T
    counts_RB = keep_RB & (score_RB <= limit_R1)
    terms = [(score_RB, counts_RB)] if loss.positives else []
    if loss.pairs:
        terms.append((document_BSD[rows, 0] @ document_BSD[:, 0].T, counts_RB))
    if loss.queries:
        between_RB = query_RD @ query_BD.T
        terms.append((between_RB, keep_RB & (between_RB <= limit_R1)))
    if loss.negatives:
        score_RC = query_RD @ document_BSD[:, 1:].flatten(0, 1).T
        exists_RC = other_RB[:, :, None] & batch.exists_BS[:, 1:]
        unknown_RC = not_relevant(batch.known_BK[rows], batch.document_key_BSK[:, 1:].flatten(0, 1))
        terms.append((score_RC, exists_RC.flatten(1) & unknown_RC & (score_RC <= limit_R1)))
    return terms


def _usable(batch: Batch, loss: Loss, rows: slice) -> Tensor:
    """Which own negatives [R, N] exist and are not too close by the teacher's scores."""
    keep_RN = batch.exists_BS[rows, 1:]
    if math.isinf(loss.teacher_share):
        return keep_RN
    teacher_RS = batch.teacher_BS[rows]
    return keep_RN & below_share(teacher_RS[:, :1], teacher_RS[:, 1:], loss.teacher_share)


def not_relevant(known_RK: Tensor, key_CK: Tensor) -> Tensor:
    """True [R, C] where no key of the candidate is known to be relevant to the row's query."""
    same_RC = torch.zeros(len(known_RK), len(key_CK), dtype=torch.bool, device=key_CK.device)
    for known_R in known_RK.unbind(1):
        for key_C in key_CK.unbind(1):
            same_RC |= known_R[:, None] == key_C
    return ~same_RC


def below_share(positive_R1: Tensor, negative_RN: Tensor, share: float) -> Tensor:
    """True where a negative's score is at most `share` of the positive's, or not known.

    Safe for negative scores: the limit is always below the positive (NV-Retriever, TopK-PercPos).
    """
    limit_R1 = positive_R1 - (1 - share) * positive_R1.abs()
    return ~(negative_RN > limit_R1)


def matryoshka_widths(width: int, *, smallest: int = 8) -> list[int]:
    """The full width, then powers of two below it, descending."""
    powers = [2**n for n in range(width.bit_length()) if smallest <= 2**n < width]
    return [width, *reversed(powers)]


def matryoshka(
    batch: Batch,
    loss: Loss,
    *,
    widths: Sequence[int],
    temperature: float = 0.02,
    rows: slice = ALL_ROWS,
) -> tuple[Tensor, Tensor]:
    """Sum of losses of truncated embeddings, the n-th of width d weighted 1 / (n sqrt(D / d)).

    `widths` descend from the full one, as in F2LLM-v2 (arXiv 2603.19223). Accuracy is the first's.
    """
    full = batch.query_BD.shape[-1]
    found = [
        contrastive(batch.truncated(d), loss, temperature=temperature, rows=rows) for d in widths
    ]
    weights = [1 / (n * math.sqrt(full / d)) for n, d in enumerate(widths, start=1)]
    value_R = torch.stack([w * v for w, (v, _) in zip(weights, found, strict=True)]).sum(0)
    return value_R, found[0][1]


def embedding_mse(student_BSD: Tensor, teacher_BSE: Tensor, exists_BS: Tensor) -> Tensor:
    """Mean squared error to the teacher's first D values [B], added up over the texts of a row.

    The teacher's vectors are at least as wide (arXiv 2603.19223); neither side is normalised.
    """
    cut_BSD = teacher_BSE[..., : student_BSD.shape[-1]]
    error_BS = (_wide(student_BSD) - _wide(cut_BSD)).square().mean(-1)
    return (error_BS * exists_BS).sum(1)


def embedding_cosine(student_BSD: Tensor, teacher_BSE: Tensor, exists_BS: Tensor) -> Tensor:
    """1 - cosine to the teacher's first D values [B], added up over the texts of a row."""
    cut_BSD = teacher_BSE[..., : student_BSD.shape[-1]]
    cosine_BS = torch.cosine_similarity(_wide(student_BSD), _wide(cut_BSD), dim=-1)
    return ((1 - cosine_BS) * exists_BS).sum(1)


def score_kl(
    student_BS: Tensor, teacher_BS: Tensor, exists_BS: Tensor, *, temperature: float = 0.05
) -> Tensor:
    """KL(teacher || student) [B] of the softmax over a row's documents (arXiv 2506.20923)."""
    log_student_BS = _masked(_wide(student_BS) / temperature, exists_BS).log_softmax(1)
    log_teacher_BS = _masked(_wide(teacher_BS) / temperature, exists_BS).log_softmax(1)
    difference_BS = torch.where(exists_BS, log_teacher_BS - log_student_BS, 0.0)
    return (log_teacher_BS.exp() * difference_BS).sum(1)


def margin_mse(student_BS: Tensor, teacher_BS: Tensor, exists_BS: Tensor) -> Tensor:
    """Mean squared error [B] of the margins positive - negative (arXiv 2010.02666)."""
    student_BN = student_BS[:, :1] - student_BS[:, 1:]
    teacher_BN = teacher_BS[:, :1] - teacher_BS[:, 1:]
    error_BN = (_wide(student_BN) - _wide(teacher_BN)).square()
    error_BN = torch.where(exists_BS[:, 1:], error_BN, 0.0)
    return error_BN.sum(1) / exists_BS[:, 1:].sum(1).clamp(min=1)


def row_scores(batch: Batch, rows: slice = ALL_ROWS) -> Tensor:
    """Cosines [R, S] of each query with its own documents."""
    return torch.einsum("rd,rsd->rs", _unit(batch.query_BD[rows]), _unit(batch.document_BSD[rows]))


def _cross_entropy(logits_RC: Tensor, focal: float) -> Tensor:
    """-log p [R] of the first column, times (1 - p)^focal."""
    value_R = logits_RC.logsumexp(1) - logits_RC[:, 0]
    if focal:
        # The slope of the root at p = 1 is infinite; the loss is 0 there, and so is its gradient.
        value_R = value_R * (-torch.expm1(-value_R)).clamp(min=1e-12) ** focal
    return value_R


def _masked(score_RC: Tensor, keep_RC: Tensor) -> Tensor:
    return score_RC.masked_fill(~keep_RC, float("-inf"))


def _unit(embedding: Tensor) -> Tensor:
    return F.normalize(_wide(embedding), dim=-1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
