"""Where a trainer's bits leave the contract: its forward pass, operation by operation, on its own inputs.

Each operation of the trainer's is computed again by the contract from what the trainer gave it, so the first that
differs is the one at fault and not one that inherited a difference.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Iterator

import torch

from ..client import Client
from ..errors import ExactError, InvalidError
from . import contract, ops
from .logprobs import token_logprobs
from .qwen3 import rope_table

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
NORMS = ("input_layernorm", "post_attention_layernorm", "norm", "q_norm", "k_norm")

CAUSES = {
    "linear": "Other matmul kernels: call match_contract() before the first forward pass; no torch.compile, and no "
              "adapter or quantised layer in place of this one",
    "norm": "Another RMSNorm than the model's own module (F.rms_norm, a fused kernel): leave the model unpatched",
    "attention": "Another attention kernel: attn_implementation=\"sdpa\", torch.backends.cuda.enable_cudnn_sdp(False), no "
                 "attention_mask with a zero in it, the model built on the GPU, and a batch that doesn't split the keys",
    "activation": "Another SwiGLU than silu(gate) * up, each rounded to bf16 (a fused kernel): leave the model unpatched",
    "log-probability": "Take them by exact_rollout.torch.token_logprobs, or cross_entropy of fp32 logits: not by "
                       "logsumexp, Categorical, bf16 logits or a temperature",
    "worker": "Each operation keeps the contract, so the worker has other weights: push the model's parameters as they "
              "are now, and score under that version",
}
DTYPE_CAUSE = ("Not bfloat16: cast the parameters (model.to(torch.bfloat16), FSDP2's param_dtype), and leave autocast, "
               "which keeps norms and residuals in fp32")


@dataclass(frozen=True)
class Difference:
    """The first stage whose bits are not the contract's."""

    stage: str  # "model.layers.3.self_attn.q_proj"
    operation: str
    differing: int
    elements: int
    ulps: int  # the largest distance, in units of the last place; -1: not of one type
    cause: str

    def __str__(self) -> str:
        size = "" if self.ulps < 0 else f", by up to {self.ulps} ulps"
        return (f"{self.stage} ({self.operation}): {self.differing} of {self.elements} values differ from the "
                f"contract{size}. {self.cause}.")


@dataclass
class Diagnosis:
    stages: int = 0  # compared, up to the first that differs
    first: Difference | None = None
    findings: list[contract.Finding] = field(default_factory=list)  # of match_contract's kind, about the model

    @property
    def ok(self) -> bool:
        return self.first is None

    def __str__(self) -> str:
        lines = [str(finding) for finding in self.findings]
        verdict = f"{self.stages} stages compared, every bit is the contract's" if self.ok else str(self.first)
        return "\n".join(lines + [verdict])


def doctor(model: torch.nn.Module, ids, client: Client | None = None,
           logprobs: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = token_logprobs) -> Diagnosis:
    """Runs `model` (a Hugging Face Llama, Qwen2 or Qwen3, or one with its modules' names) on `ids` (B, L) and compares
    stage by stage; then `logprobs(logits, targets)`, the trainer's own way; then, with a client, the worker's scores.
    The contract's side is computed on the CPU: short texts do.
    """
    ids = torch.as_tensor(ids).cpu()
    if ids.dim() != 2 or ids.shape[1] < 2:
        raise InvalidError("ids must be (B, L), with two ids or more in a row")
    device = next(model.parameters()).device
    with _Tape(model) as tape, torch.no_grad():
        out = model(ids.to(device))
        logits = getattr(out, "logits", out)
        values = logprobs(logits[:, :-1], ids[:, 1:].to(device))
    diagnosis = Diagnosis(findings=contract.model_findings(model))
    for stage, operation, got, expect in _stages(model, ids, tape, logits.cpu(), values.cpu(), client):
        difference = _compare(stage, operation, got, expect)
        if difference is not None:
            diagnosis.first = difference
            break
        diagnosis.stages += 1
    return diagnosis


class _Tape:
    """What went in and came out of each module of interest, in the order they ran."""

    def __init__(self, model: torch.nn.Module):
        self.records: list[tuple[str, torch.nn.Module, torch.Tensor, torch.Tensor]] = []
        self._hooks = [module.register_forward_hook(self._recorder(name)) for name, module in model.named_modules()
                       if name.split(".")[-1] in LINEARS + NORMS]
        if not self._hooks:
            raise InvalidError("the model has no module that the doctor knows (q_proj, input_layernorm, ...): it looks at "
                               "Hugging Face's Llama, Qwen2 and Qwen3")

    def _recorder(self, name: str):
        def record(module, inputs, out):
            self.records.append((name, module, inputs[0].detach().cpu(), out.detach().cpu()))
        return record

    def __enter__(self) -> _Tape:
        return self

    def __exit__(self, *_) -> None:
        for hook in self._hooks:
            hook.remove()


# (stage, operation, the trainer's result, how the contract computes it)
_Stage = tuple[str, str, torch.Tensor, Callable[[], torch.Tensor]]


def _stages(model, ids, tape, logits, values, client) -> Iterator[_Stage]:
    made: dict[str, torch.Tensor] = {}  # by the last part of the name: of the layer that runs
    for name, module, given, out in tape.records:
        kind = name.split(".")[-1]
        if kind == "o_proj":
            yield name.rsplit(".", 1)[0], "attention", given, lambda g=given: _attention(model, ids, made, g)
        if kind == "down_proj":
            yield (name.rsplit(".", 1)[0], "activation", given,
                   lambda: ops.silu_mul(made["gate_proj"], made["up_proj"]))
        if kind in NORMS:
            epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
            yield name, "norm", out, lambda m=module, g=given, e=epsilon: ops.rms_norm(g, m.weight.cpu(), e)
        else:
            bias = getattr(module, "bias", None)
            yield (name, "linear", out, lambda m=module, g=given, b=bias:
                   ops.linear(g, m.weight.cpu(), None if b is None else b.cpu()))
        made[kind] = out
    yield "logprobs", "log-probability", values, lambda: ops.token_logprobs(
        logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)).view(values.shape)
    if client is not None:
        yield "the worker's scores", "worker", values, lambda: torch.stack(
            [torch.from_numpy(client.score(row).logprobs) for row in ids])


def _attention(model, ids, made, given) -> torch.Tensor:
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    batch, length = ids.shape
    query, key = (made.get(norm, made[projection]).reshape(batch * length, -1, width)
                  for norm, projection in (("q_norm", "q_proj"), ("k_norm", "k_proj")))
    table = rope_table(config.to_json_string(), length)
    positions = torch.arange(length).repeat(batch)
    query, key = ops.rope(query, positions, table), ops.rope(key, positions, table)
    value = made["v_proj"].reshape(batch * length, -1, width)
    return ops.attention(query, key, value, torch.full((batch,), length)).reshape(given.shape)


def _compare(stage: str, operation: str, got: torch.Tensor, expect: Callable[[], torch.Tensor]) -> Difference | None:
    wanted = torch.float32 if operation in ("log-probability", "worker") else torch.bfloat16
    if got.dtype != wanted:
        cause = CAUSES[operation] if wanted == torch.float32 else DTYPE_CAUSE
        return Difference(stage, f"{operation} in {got.dtype}", got.numel(), got.numel(), -1, cause)
    try:
        with torch.no_grad():
            want = expect()
    except ExactError as refused:
        return Difference(stage, operation, got.numel(), got.numel(), -1, f"The contract does not cover it: {refused}")
    a, b = _ordered(got), _ordered(want)
    wrong = int((a != b).sum())
    if wrong == 0:
        return None
    return Difference(stage, operation, wrong, got.numel(), int((a - b).abs().max()), CAUSES[operation])


def _ordered(tensor: torch.Tensor) -> torch.Tensor:
    """Bits as integers in the order of the values: neighbours differ by one."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.float32:
        bits, sign = tensor.view(torch.int32).long(), 2**31
    else:
        bits, sign = tensor.view(torch.int16).long(), 2**15
    return torch.where(bits < 0, -sign - bits - 1, bits)
