"""Under which settings a stock trainer computes the worker's bits (docs/numerics.md), set and checked."""
from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Callable

import numpy as np
import torch

from .. import _core
from ..bits import differing
from ..errors import ContractMismatchError, ExactError

MEASURED_TORCH = "2.11"
MEASURED_TRANSFORMERS = "5.17"
H200_MULTIPROCESSORS = 132


@dataclass(frozen=True)
class Finding:
    """One thing that breaks the bits ("error"), or may ("warning"), and what to do about it."""

    level: str
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.level}: {self.what}. {self.do}"


@dataclass
class ContractReport:
    switches: list[str] = field(default_factory=list)  # that were set, as Python
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing was found that breaks the bits; there may be warnings."""
        return all(finding.level != "error" for finding in self.findings)

    def __str__(self) -> str:
        lines = [f"set: {switch}" for switch in self.switches] + [str(finding) for finding in self.findings]
        return "\n".join(lines + ["the contract holds" if self.ok else "the contract does not hold"])


def match_contract(model: torch.nn.Module | None = None, *, batch: int | None = None, length: int | None = None,
                   strict: bool = False) -> ContractReport:
    """Sets PyTorch's four switches; looks at versions, the GPU and, where given, the model and the shape of its
    smallest batch (`batch` sequences padded to `length`). strict: ContractMismatchError where something breaks the
    bits. Warnings are also given through `warnings`.
    """
    report = ContractReport()
    for code, switch in _SWITCHES:
        try:
            switch()
            report.switches.append(code)
        except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as failure:
            report.findings.append(Finding("error", f"this PyTorch does not take `{code}` ({failure})",
                                           f"Use PyTorch {MEASURED_TORCH} or later, built with CUDA"))
    report.findings += _environment()
    if model is not None:
        report.findings += model_findings(model)
        if batch is not None and length is not None:
            report.findings += _attention(model, batch, length)
    for finding in report.findings:
        if finding.level == "warning":
            warnings.warn(str(finding), stacklevel=2)
    if strict and not report.ok:
        raise ContractMismatchError("; ".join(str(f) for f in report.findings if f.level == "error"))
    return report


def may_split_keys(batch: int, heads: int, length: int, head_width: int,
                   multiprocessors: int = H200_MULTIPROCESSORS) -> bool:
    """Whether FlashAttention 2's dense path may split the keys of such a batch, which gives other bits."""
    key_block = 128 if head_width <= 64 else 64
    if length <= key_block:
        return False
    return batch * heads * -(-length // 64) < 0.8 * 2 * multiprocessors


def _set_bf16():
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (False, False)


def _set_fp16():
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = (False, False)


_SWITCHES: list[tuple[str, Callable[[], object]]] = [
    ('torch.backends.cuda.preferred_blas_library("cublaslt")',
     lambda: torch.backends.cuda.preferred_blas_library("cublaslt")),
    ("torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (False, False)", _set_bf16),
    ("torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = (False, False)", _set_fp16),
    ("torch.backends.cuda.enable_cudnn_sdp(False)", lambda: torch.backends.cuda.enable_cudnn_sdp(False)),
]


def _environment() -> list[Finding]:
    findings = []
    if not torch.cuda.is_available():
        findings.append(Finding("error", "there is no GPU that PyTorch can use",
                                "Train on a Hopper GPU, or with the operations of exact_rollout.torch.ops"))
    elif torch.cuda.get_device_capability() != (9, 0):
        name = torch.cuda.get_device_name()
        findings.append(Finding("error", f"{name} is not a Hopper GPU: its kernels round otherwise, or were not measured",
                                "Use an H100 or H200, or the operations of exact_rollout.torch.ops"))
    if not torch.__version__.startswith(MEASURED_TORCH + "."):
        findings.append(Finding("warning", f"PyTorch {torch.__version__} was not measured",
                                f"Measured is {MEASURED_TORCH}: compare log-probabilities with the worker's before you "
                                "trust them"))
    transformers = _transformers_version()
    if transformers and not transformers.startswith(MEASURED_TRANSFORMERS + "."):
        findings.append(Finding("warning", f"transformers {transformers} was not measured",
                                f"Measured is {MEASURED_TRANSFORMERS}"))
    if torch.is_autocast_enabled():
        findings.append(Finding("error", "autocast is on: norms and residuals stay fp32",
                                "Cast the parameters to bfloat16 instead, and leave autocast"))
    return findings


def _transformers_version() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("transformers")
    except metadata.PackageNotFoundError:
        return None


def model_findings(model: torch.nn.Module) -> list[Finding]:
    findings = []
    if hasattr(model, "_orig_mod"):
        findings.append(Finding("error", "the model is compiled: fused kernels have other bits",
                                "Leave torch.compile out, or train with model._orig_mod"))
    wrong = [name for name, p in model.named_parameters() if p.dtype != torch.bfloat16]
    if wrong:
        findings.append(Finding("error", f"{len(wrong)} parameters are not bfloat16, the first is '{wrong[0]}'",
                                "model.to(torch.bfloat16), or FSDP2's param_dtype=torch.bfloat16; master weights may "
                                "be fp32"))
    config = getattr(model, "config", None)
    attention = getattr(config, "_attn_implementation", "sdpa")
    if attention != "sdpa":
        findings.append(Finding("error", f"attention is '{attention}': other kernels have other bits",
                                'from_pretrained(..., attn_implementation="sdpa")'))
    return findings + _rope(model, config)


def _rope(model: torch.nn.Module, config) -> list[Finding]:
    """Frequencies that a CPU computed differ in their last bits, and no later .cuda() mends them."""
    buffers = [b for name, b in model.named_buffers() if name.split(".")[-1] == "inv_freq"]
    if not buffers or not hasattr(config, "to_json_string"):
        return []
    rounded = [b.dtype for b in buffers if b.dtype != torch.float32]
    if rounded:
        return [Finding("error", f"rotary frequencies are {rounded[0]}: a cast of the whole model rounded them",
                        "Load the model with dtype=torch.bfloat16 instead of casting it")]
    try:
        want = _core.rope_frequencies(config.to_json_string())
    except ExactError as refused:
        return [Finding("warning", f"rotary frequencies were not compared: {refused}", "See what is taken in README.md")]
    wrong = max(_differing(buffer, want) for buffer in buffers)
    if wrong == 0:
        return []
    return [Finding("error", f"{wrong} of {len(want)} rotary frequencies are not those that a GPU computes: the model "
                    "was built on the CPU", 'Build it with `with torch.device("cuda"): ...from_pretrained(...)`')]


def _differing(buffer: torch.Tensor, want: np.ndarray) -> int:
    got = buffer.detach().cpu().numpy()
    return differing(got, want) if got.shape == want.shape else len(want)


def _attention(model: torch.nn.Module, batch: int, length: int) -> list[Finding]:
    config = model.config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    processors = H200_MULTIPROCESSORS
    if torch.cuda.is_available():
        processors = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    if not may_split_keys(batch, heads, length, width, processors):
        return []
    blocks = -(-length // 64)
    enough = int(-(-1.6 * processors // (heads * blocks)))
    return [Finding("warning", f"a batch of {batch} x {length} with {heads} heads is so small that flash attention may "
                    "split the keys, which gives other bits", f"Take batches of {enough} or more, or varlen attention")]
