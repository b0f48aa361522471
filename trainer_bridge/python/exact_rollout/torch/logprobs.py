"""Log-probabilities of chosen tokens, from logits, with stock operations and the contract's bits."""
from __future__ import annotations

import torch

from ..errors import InvalidError


def token_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """fp32 log p(targets) with gradients. logits (..., V) bf16 of the positions before the targets (...).

    cross_entropy and log_softmax over fp32 logits have equal bits; `gather - logsumexp` and
    torch.distributions.Categorical differ in the last bit of some 3 % of the values. One sequence at a time, so that
    one sequence's logits are held in fp32 and not the batch's.
    """
    if logits.shape[:-1] != targets.shape:
        raise InvalidError(f"logits of shape {tuple(logits.shape)} need targets of shape {tuple(logits.shape[:-1])}, "
                           f"not {tuple(targets.shape)}")
    if logits.dtype != torch.bfloat16:
        raise InvalidError(f"logits are {logits.dtype}: the contract's are bfloat16, widened here and not before")
    if logits.dim() > 2:
        return torch.stack([token_logprobs(one, ids) for one, ids in zip(logits, targets)])
    return -torch.nn.functional.cross_entropy(logits.float(), targets.long(), reduction="none")
