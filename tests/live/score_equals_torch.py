#!/usr/bin/env python3
"""Holds `rollout score` to a stock PyTorch trainer, live: one model, the same token ids, every bit.

Needs a Hopper GPU, torch and transformers; nothing else of the project needs them. For each shape it
makes a model with `rollout make-model`, runs the Hugging Face forward pass on the GPU under the
switches of docs/numerics.md, scores the same ids with `rollout score --backend cpu`, and compares the
log-probabilities as bits. Exit code 0: none differs; 1: some do; 3: there is nothing to run on.

    tests/live/score_equals_torch.py --rollout build/release/bin/rollout
    tests/live/score_equals_torch.py --rollout build/release/bin/rollout --shape llama-3.2-1b --length 512
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from shapes import SHAPES


def torch_logprobs(directory, ids):
    import torch
    from transformers import AutoModelForCausalLM

    torch.backends.cuda.preferred_blas_library("cublaslt")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (False, False)
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = (False, False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    # RoPE's frequencies must be computed on the GPU: a model loaded on the CPU first keeps the
    # CPU's pow, whose last bits differ (docs/numerics.md).
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    rows = []
    with torch.no_grad():
        logits = model(ids.cuda()).logits
        for sequence, tokens in zip(logits, ids.cuda()):  # one at a time: fp32 logits are large
            logprobs = torch.log_softmax(sequence[:-1].float(), -1)
            rows.append(logprobs.gather(-1, tokens[1:, None].long()).squeeze(-1))
    return torch.stack(rows).cpu()


def compare(name, arguments):
    import torch
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "config.json").write_text(json.dumps(SHAPES[name], indent=1))
        subprocess.run([arguments.rollout, "make-model", "--config", folder / "config.json", "--seed",
                        str(arguments.seed), "--out", folder / "model"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        generator = torch.Generator().manual_seed(arguments.seed)
        ids = torch.randint(0, SHAPES[name]["vocab_size"], (arguments.batch, arguments.length),
                            generator=generator, dtype=torch.int32)
        want = torch_logprobs(folder / "model", ids)
        save_file({"input_ids": ids}, folder / "ids.safetensors")
        begin = time.time()
        subprocess.run([arguments.rollout, "score", "--backend", "cpu", "--model", folder / "model", "--tokens",
                        folder / "ids.safetensors", "--out", folder / "out.safetensors"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        got = load_file(folder / "out.safetensors")["logprobs"]
    differing = int((got.view(torch.int32) != want.view(torch.int32)).sum())
    print(f"{name:14} batch {arguments.batch}, length {arguments.length}: {differing} of "
          f"{want.numel()} log-probabilities differ ({time.time() - begin:.0f} s on the CPU)",
          flush=True)
    return differing


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollout", required=True, help="the program `rollout`")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: three of them")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=300)
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    try:
        import torch
        import transformers
    except ImportError as error:
        print(f"score_equals_torch: {error}", file=sys.stderr)
        return 3
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        print("score_equals_torch: no Hopper GPU here, nothing to compare with", file=sys.stderr)
        return 3
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, "
          f"{torch.cuda.get_device_name()}, seed {arguments.seed}")
    differing = sum(compare(name, arguments) for name in arguments.shape or ["qwen3-0.6b", "qwen2.5-0.5b", "llama-3.2-1b"])
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
