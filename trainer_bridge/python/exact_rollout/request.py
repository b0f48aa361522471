"""What a rollout may ask for, by the wire's names (docs/protocol.md has the range of each)."""
from __future__ import annotations

from typing import Sequence, TypedDict

from . import _core
from .errors import InvalidError
from .ids import as_ids

REPLY_MODES = {"whole": 0, "samples": 1, "tokens": 2}


class RolloutParameters(TypedDict, total=False):
    """Keyword arguments of Client.submit and Client.generate; what is left out keeps the worker's default."""

    n: int
    max_new_tokens: int  # 0: up to the context
    temperature: float  # 0: greedy
    top_k: int
    top_p: float
    seed: int  # sample i draws with (seed, i)
    stop_ids: Sequence[int]
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Sequence[tuple[int, float]]
    allowed_ids: Sequence[int]
    banned_ids: Sequence[int]
    stop_sequences: Sequence[Sequence[int]]
    min_new_tokens: int
    ignore_eos: bool
    forced_ids: Sequence[int]
    top_logprobs: int
    entropy: bool
    kept_set: bool
    prompt_logprobs: bool
    priority: int
    masked: bool
    deadline_ms: int
    stream: str  # "whole", "samples" or "tokens": when the client hears of it


def make_request(prompt, parameters: RolloutParameters) -> _core.Generate:
    """Refuses a name that does not exist and a value of another type, by its name; ranges are the worker's."""
    request = _core.Generate()
    request.prompt = as_ids(prompt, "prompt")
    for name, value in parameters.items():
        if name == "stream":
            if value not in REPLY_MODES:
                raise InvalidError(f"stream must be one of {', '.join(REPLY_MODES)}: not {value!r}")
            request.reply_mode = REPLY_MODES[value]
            continue
        if name not in RolloutParameters.__annotations__:
            known = ", ".join(RolloutParameters.__annotations__)
            raise TypeError(f"no rollout parameter is called '{name}'; there are {known}")
        try:
            setattr(request, name, _plain(value))
        except TypeError:
            raise InvalidError(f"{name} can't be {value!r}: it must be "
                               f"{RolloutParameters.__annotations__[name]}, within 32 bits (seed: 64)") from None
    return request


def _plain(value):
    """NumPy's and torch's numbers and vectors as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value
