"""Batches whose rows keep the bits that each sequence has alone."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import torch

from ..errors import InvalidError
from ..ids import as_ids


@dataclass(frozen=True)
class Packed:
    """Sequences one after the other, for varlen attention."""

    ids: torch.Tensor  # (T) int64
    positions: torch.Tensor  # (T) int64, from 0 in each sequence
    lengths: list[int]
    cu_seqlens: torch.Tensor  # (sequences + 1) int32: where each begins, and T

    @property
    def max_length(self) -> int:
        return max(self.lengths)

    def split(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """What belongs to each sequence, of a tensor with T rows."""
        return list(rows.split(self.lengths))


def pack(sequences: Sequence, device="cpu") -> Packed:
    """Stock varlen attention (torch.nn.attention.varlen) on it has the bits of dense flash attention, row by row."""
    texts = _texts(sequences)
    lengths = [len(text) for text in texts]
    bounds = [0]
    for length in lengths:
        bounds.append(bounds[-1] + length)
    return Packed(torch.cat(texts).to(device), torch.cat([torch.arange(n) for n in lengths]).to(device), lengths,
                  torch.tensor(bounds, dtype=torch.int32, device=device))


def pad_right(sequences: Sequence, pad_id: int = 0, device="cpu") -> tuple[torch.Tensor, list[int]]:
    """(B, L) ids and the lengths. Pass no attention_mask with it: a causal model needs none for padding at the end,
    and one with a zero in it makes SDPA leave the flash kernel, which has other bits.
    """
    texts = _texts(sequences)
    ids = torch.full((len(texts), max(map(len, texts))), pad_id, dtype=torch.int64)
    for row, text in zip(ids, texts):
        row[:len(text)] = text
    return ids.to(device), [len(text) for text in texts]


def _texts(sequences: Sequence) -> list[torch.Tensor]:
    texts = [torch.from_numpy(as_ids(sequence, "a sequence")).long() for sequence in sequences]
    if not texts or any(len(text) == 0 for text in texts):
        raise InvalidError("a batch needs sequences, and each of them ids")
    return texts
