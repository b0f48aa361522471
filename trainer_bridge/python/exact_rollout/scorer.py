"""The trainer's own forward pass on a CPU, in the contract's bits."""
from __future__ import annotations

import os
import pathlib
from typing import Iterable, Mapping

import numpy as np

from . import _core
from .ids import as_ids
from .tensors import named_arrays


class Scorer:
    """Of a Hugging Face directory; or, with `tensors`, of a config.json and weights that the trainer holds in memory.

    threads: 0: one a core; no bit depends on it. max_context: 0: the model's, at most 8192.
    """

    def __init__(self, model: str | os.PathLike, tensors: Mapping | Iterable[tuple] | None = None, *,
                 threads: int = 0, max_context: int = 0):
        path = pathlib.Path(model)
        if tensors is None:
            self._core = _core.Scorer.from_directory(str(path), threads, max_context)
        else:
            config = path / "config.json" if path.is_dir() else path
            self._core = _core.Scorer.from_tensors(config.read_text(), named_arrays(tensors), threads, max_context)

    def score(self, tokens) -> np.ndarray:
        """fp32, tokens - 1: log p(tokens[i + 1] | tokens[0..i])."""
        return self.score_many([tokens])[0]

    def score_many(self, texts) -> list[np.ndarray]:
        """Many texts at once, faster than one by one and with the same bits."""
        return self._core.score([as_ids(text) for text in texts])

    def set_weights(self, tensors: Mapping | Iterable[tuple]) -> None:
        """Other weights for the same model; they are copied. After an error the old ones still score."""
        self._core.set_weights(named_arrays(tensors))

    @property
    def contract_id(self) -> str:
        return self._core.contract_id()

    @property
    def weights_digest(self) -> str:
        return self._core.weights_digest()
