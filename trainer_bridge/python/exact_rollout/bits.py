"""Comparing floats as bits: equal means equal, and a NaN equals itself."""
from __future__ import annotations

import numpy as np
import numpy.typing as npt


def differing(a: npt.ArrayLike, b: npt.ArrayLike) -> int:
    """How many fp32 values of two arrays differ in any bit. Shapes must be equal."""
    left, right = _as_bits(a), _as_bits(b)
    if left.shape != right.shape:
        raise ValueError(f"shapes {left.shape} and {right.shape} can't be compared")
    return int((left != right).sum())


def _as_bits(values) -> np.ndarray:
    if hasattr(values, "detach"):  # torch
        values = values.detach().cpu().numpy()
    values = np.ascontiguousarray(values)
    if values.dtype != np.float32:
        raise ValueError(f"values of type {values.dtype}: bits of float32 are compared, nothing is converted")
    return values.view(np.uint32)
