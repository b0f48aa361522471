"""Token ids from whatever a trainer holds them in: lists, NumPy arrays, torch tensors."""
from __future__ import annotations

import numpy as np

from .errors import InvalidError


def as_ids(values, name: str = "tokens") -> np.ndarray:
    """A contiguous int32 vector; a copy only where the values are not one already."""
    if hasattr(values, "detach"):  # torch, on any device
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidError(f"{name} must be a vector of integers: here are {array.ndim} dimensions of {array.dtype}")
    if array.dtype != np.int32:
        limits = np.iinfo(np.int32)
        if array.min(initial=0) < limits.min or array.max(initial=0) > limits.max:
            raise InvalidError(f"{name} has an id that does not fit 32 bits")
    return np.ascontiguousarray(array, dtype=np.int32)
