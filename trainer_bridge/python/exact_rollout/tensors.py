"""A trainer's parameters as what the bridge reads: names and bf16 bits, without a copy where they lie in host memory."""
from __future__ import annotations

from typing import Iterable, Mapping

import numpy as np

from .errors import InvalidError


def named_arrays(tensors: Mapping | Iterable[tuple]) -> list[tuple]:
    """From `model.named_parameters()`, a state_dict, or pairs of a name and an array: torch bfloat16 tensors, NumPy
    arrays of ml_dtypes.bfloat16 or of its bits as uint16. A tied lm_head that is the embedding itself comes once.
    """
    pairs = list(tensors.items() if isinstance(tensors, Mapping) else tensors)
    arrays = []
    embedding = None
    for name, tensor in pairs:
        array = _one(name, tensor)
        if name == "model.embed_tokens.weight":
            embedding = array
        arrays.append((name, array))
    if embedding is not None:
        arrays = [(name, array) for name, array in arrays
                  if name != "lm_head.weight" or not _same_memory(array, embedding)]
    return arrays


def _one(name: str, tensor):
    if not isinstance(name, str):
        raise InvalidError(f"tensors are pairs of a name and a tensor: {name!r} is no name")
    if hasattr(tensor, "detach"):
        return _of_torch(name, tensor)
    array = np.asarray(tensor)
    if array.dtype.name == "bfloat16":
        array = array.view(np.uint16)
    if array.dtype != np.uint16:
        raise InvalidError(f"tensor '{name}' is {array.dtype}: give bfloat16, or its bits as uint16")
    return np.ascontiguousarray(array)


def _of_torch(name: str, tensor):
    import torch

    if hasattr(tensor, "full_tensor"):
        raise InvalidError(f"tensor '{name}' is sharded: gather it first (tensor.full_tensor())")
    if tensor.dtype != torch.bfloat16:
        raise InvalidError(f"tensor '{name}' is {tensor.dtype}: the forward pass is in bfloat16, so are the weights to "
                           "push: cast the parameters (tensor.to(torch.bfloat16))")
    tensor = tensor.detach()
    if tensor.device.type != "cpu":
        tensor = tensor.cpu()
    return tensor.contiguous()


def _same_memory(a, b) -> bool:
    return _address(a) == _address(b)


def _address(array) -> int:
    return array.data_ptr() if hasattr(array, "data_ptr") else array.ctypes.data
