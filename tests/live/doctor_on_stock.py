#!/usr/bin/env python3
"""The doctor on stock models on a Hopper GPU: it must find nothing under the switches, and what is provoked else.

Needs the package exact_rollout, torch and transformers. Models of two layers, weights of a hash. Exit code 0: each
diagnosis was the expected one; 1: one was not; 3: there is nothing to run on.

    tests/live/doctor_on_stock.py [--shape qwen3-1.7b]...
"""
import argparse
import contextlib
import pathlib
import sys
import tempfile

from shapes import SHAPES


@contextlib.contextmanager
def cudnn_attention(torch, model):
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.backends.cuda.enable_flash_sdp(False)
    yield
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.enable_cudnn_sdp(False)


@contextlib.contextmanager
def fused_norm(torch, model):
    norm = model.model.layers[1].post_attention_layernorm
    norm.forward = lambda x: torch.nn.functional.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
    yield
    del norm.forward


@contextlib.contextmanager
def other_frequencies(torch, model):
    buffer = model.model.rotary_emb.inv_freq
    kept = buffer.clone()
    buffer.mul_(1.001)
    yield
    buffer.copy_(kept)


@contextlib.contextmanager
def autocast(torch, model):
    model.float()
    with torch.autocast("cuda", torch.bfloat16):
        yield
    model.to(torch.bfloat16)


@contextlib.contextmanager
def nothing(torch, model):
    yield


# The expected operation, or its beginning; None: every bit is the contract's. autocast is last: it rounds the
# frequencies of a model that it leaves.
PROVOKED = [("stock", nothing, None), ("cuDNN attention", cudnn_attention, "attention"),
            ("F.rms_norm", fused_norm, "norm"), ("other frequencies", other_frequencies, "attention"),
            ("autocast", autocast, "norm in torch.float32")]


def examine(name):
    import torch

    import stock_torch
    from exact_rollout.torch import doctor, match_contract

    ids = torch.randint(0, SHAPES[name]["vocab_size"], (16, 130), generator=torch.Generator().manual_seed(5))
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        model = stock_torch.make_model(dict(SHAPES[name], num_hidden_layers=2), 5, pathlib.Path(folder))
    report = match_contract(model, batch=ids.shape[0], length=ids.shape[1])
    print(f"{name}: match_contract\n{report}", flush=True)
    wrong += not report.ok
    for label, provoke, operation in PROVOKED:
        with provoke(torch, model):
            found = doctor(model, ids)
        as_expected = found.ok if operation is None else not found.ok and found.first.operation == operation
        wrong += not as_expected
        print(f"{name}: {label}: {'as expected' if as_expected else 'NOT as expected'}: {found}", flush=True)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: qwen3-1.7b and llama-3.2-1b")
    arguments = parser.parse_args()
    try:
        import exact_rollout  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        print(f"doctor_on_stock: {error}", file=sys.stderr)
        return 3
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        print("doctor_on_stock: no Hopper GPU here, nothing to examine", file=sys.stderr)
        return 3
    wrong = sum(examine(name) for name in arguments.shape or ("qwen3-1.7b", "llama-3.2-1b"))
    print(f"{wrong} diagnoses were not the expected ones")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
