"""Contrastive losses as pure functions of embeddings: no model, no distribution, no state.

Shape suffixes: B queries, N negatives per query, D embedding width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def hard_negative_infonce(
    query_BD: Tensor,
    positive_BD: Tensor,
    negatives_BND: Tensor,
    mask_BN: Tensor,
    *,
    temperature: float = 0.02,
) -> tuple[Tensor, Tensor]:
    """InfoNCE over explicit negatives only: loss [B], and accuracy@1 [B] (0 or 1) of each query.

    Cosine similarity over `temperature`; `mask_BN` is True where a negative exists. No in-batch
    negatives, as in llama-embed-nemotron-8b (arXiv 2511.07025, section 3.1): the loss of a batch is
    the mean over its queries, however it is cut into micro-batches. A query without any negative
    has loss 0 and no gradient.
    """
    query_BD = F.normalize(query_BD.float(), dim=-1)
    positive_BD = F.normalize(positive_BD.float(), dim=-1)
    negatives_BND = F.normalize(negatives_BND.float(), dim=-1)
    positive_B1 = (query_BD * positive_BD).sum(-1, keepdim=True)
    negatives_BN = torch.einsum("bd,bnd->bn", query_BD, negatives_BND)
    negatives_BN = negatives_BN.masked_fill(~mask_BN, float("-inf"))
    logits = torch.cat([positive_B1, negatives_BN], dim=1) / temperature
    target_B = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    accuracy_B = (logits[:, :1] > logits[:, 1:]).all(dim=1).float()
    return F.cross_entropy(logits, target_B, reduction="none"), accuracy_B
