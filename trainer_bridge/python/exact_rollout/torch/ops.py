"""The contract's forward operations on a CPU, with gradients: for trainers that can't use PyTorch's own kernels on a
Hopper GPU. Forward has the worker's bits; backward is what autograd makes of the same expression in plain torch.

They are registered as torch.ops.exact_rollout.* for CPU tensors; the functions here are those with gradients.
Residual additions and embeddings need no operation of their own: PyTorch's have the bits.
"""
from __future__ import annotations

import functools
from typing import Callable

import numpy as np
import torch
import torch.nn.functional as F

from .. import _core
from ..errors import InvalidError


@functools.lru_cache(maxsize=None)
def _ops() -> _core.ContractOps:
    return _core.ContractOps.create(torch.get_num_threads())


def _here(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous()


def _ids(tensor: torch.Tensor) -> np.ndarray:
    return _here(tensor).to(torch.int32).numpy()


# ---- forward: CPU tensors, no gradients
def _linear(x, weight, bias=None):
    if x.shape[-1] != weight.shape[-1]:
        raise InvalidError(f"x has {x.shape[-1]} features, weight takes {weight.shape[-1]}")
    out = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=torch.bfloat16)
    _ops().linear(_here(x), _here(weight), None if bias is None else _here(bias), out)
    return out


def _rms_norm(x, weight, epsilon: float):
    if x.shape[-1] != weight.shape[-1]:
        raise InvalidError(f"x has a width of {x.shape[-1]}, the norm's weight of {weight.shape[-1]}")
    out = torch.empty(x.shape, dtype=torch.bfloat16)
    _ops().rms_norm(_here(x), _here(weight), epsilon, out)
    return out


def _rope(x, positions, cos_sin):
    out = _here(x).clone()
    _ops().rope(out, _ids(positions), x.shape[-1], _here(cos_sin))
    return out


def _attention(query, key, value, lengths):
    rows, heads, width = query.shape
    out = torch.empty((rows, heads * width), dtype=torch.bfloat16)
    flat = [_here(t).reshape(rows, -1) for t in (query, key, value)]
    _ops().attention(*flat, width, _ids(lengths), out)
    return out.view(rows, heads, width)


def _silu_mul(gate, up):
    out = torch.empty(gate.shape, dtype=torch.bfloat16)
    _ops().silu_mul(_here(gate), _here(up), out)
    return out


def _token_logprobs(logits, targets):
    out = torch.empty(targets.shape, dtype=torch.float32)
    _ops().target_logprobs(_here(logits), _ids(targets), out)
    return out


_library = torch.library.Library("exact_rollout", "DEF")
for _schema, _function in (
    ("linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor", _linear),
    ("rms_norm(Tensor x, Tensor weight, float epsilon) -> Tensor", _rms_norm),
    ("rope(Tensor x, Tensor positions, Tensor cos_sin) -> Tensor", _rope),
    ("attention(Tensor query, Tensor key, Tensor value, Tensor lengths) -> Tensor", _attention),
    ("silu_mul(Tensor gate, Tensor up) -> Tensor", _silu_mul),
    ("token_logprobs(Tensor logits, Tensor targets) -> Tensor", _token_logprobs),
):
    _library.define(_schema)
    _library.impl(_schema.split("(")[0], _function, "CPU")


# ---- the same in plain torch, fp32: what the gradients are of
def _plain_rms_norm(x, weight, epsilon):
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon))


def _plain_rope(x, positions, cos_sin):
    width = x.shape[-1]
    cos, sin = cos_sin[positions.long()].unsqueeze(1).split(width, -1)
    rotated = torch.cat((-x[..., width // 2:], x[..., :width // 2]), -1)
    return x * cos + rotated * sin


def _plain_attention(query, key, value, lengths):
    outs = []
    repeats = query.shape[1] // key.shape[1]
    sizes = lengths.tolist()
    for q, k, v in zip(query.split(sizes), key.split(sizes), value.split(sizes)):
        q, k, v = (t.transpose(0, 1) for t in (q, k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)))
        scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        outs.append((scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outs)


def _plain_token_logprobs(logits, targets):
    return F.log_softmax(logits, -1).gather(-1, targets.long().unsqueeze(-1)).squeeze(-1)


class _ByContract(torch.autograd.Function):
    """Forward by one function, backward by another's gradient."""

    @staticmethod
    def forward(ctx, exact: Callable, plain: Callable, *inputs):
        ctx.plain = plain
        ctx.tensors = [i for i, value in enumerate(inputs) if isinstance(value, torch.Tensor)]
        ctx.others = {i: value for i, value in enumerate(inputs) if not isinstance(value, torch.Tensor)}
        ctx.count = len(inputs)
        ctx.save_for_backward(*(inputs[i] for i in ctx.tensors))
        return exact(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        inputs = [ctx.others.get(i) for i in range(ctx.count)]
        wanted = []
        for i, saved in zip(ctx.tensors, ctx.saved_tensors):
            inputs[i] = saved.detach().float() if saved.is_floating_point() else saved
            if ctx.needs_input_grad[2 + i]:
                inputs[i].requires_grad_()
                wanted.append(i)
        with torch.enable_grad():
            out = ctx.plain(*inputs)
        found = torch.autograd.grad(out, [inputs[i] for i in wanted], gradient.float())
        gradients = [None] * ctx.count
        for i, value in zip(wanted, found):
            gradients[i] = value.to(ctx.saved_tensors[ctx.tensors.index(i)].dtype)
        return (None, None, *gradients)


# ---- with gradients
def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Rule N1. x (..., K) bf16, weight (N, K), bias (N)"""
    return _ByContract.apply(torch.ops.exact_rollout.linear, F.linear, x, weight, bias)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Rules N2, N3, as the modules of Llama and Qwen. x (..., D), weight (D)"""
    return _ByContract.apply(torch.ops.exact_rollout.rms_norm, _plain_rms_norm, x, weight, epsilon)


def rope(x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """Rule N4. x (T, heads, E), positions (T), cos_sin (P, 2 * E): qwen3.rope_table"""
    return _ByContract.apply(torch.ops.exact_rollout.rope, _plain_rope, x, positions, cos_sin)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Rule N5, causal in each packed sequence. query (T, H, E); key, value (T, G, E); lengths add up to T"""
    return _ByContract.apply(torch.ops.exact_rollout.attention, _plain_attention, query, key, value, lengths)


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Rule N6. silu(gate) * up"""
    return _ByContract.apply(torch.ops.exact_rollout.silu_mul, lambda g, u: F.silu(g) * u, gate, up)


def token_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Rule N7. fp32 log p(targets); logits (R, V) bf16, targets (R)"""
    return _ByContract.apply(torch.ops.exact_rollout.token_logprobs, _plain_token_logprobs, logits, targets)
