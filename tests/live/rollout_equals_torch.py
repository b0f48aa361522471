#!/usr/bin/env python3
"""Holds rollouts to a stock PyTorch trainer, live: generated tokens, and every bit of their log-probabilities.

Needs a Hopper GPU, torch, transformers and safetensors. For each shape it makes a hash-initialised Hugging Face
model on the GPU, lets `rollout generate --backend cuda` sample from it - many sequences of mixed lengths at once, and
a few that end at the longest context -, runs the stock forward pass on the same ids, and compares the
log-probabilities of every generated token as bits. Then `rollout score` computes all of them again by prefill, in
chunks of two sizes. Exit code 0: none differs; 1: some do; 3: there is nothing to run on.

    tests/live/rollout_equals_torch.py --rollout build/cuda/bin/rollout --shape qwen3-8b
"""
import argparse
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

from shapes import SHAPES


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command[:2]))} failed: {done.stderr[-2000:]}")
    return done.stdout


def write_prompts(path, name, arguments):
    """Sequences of mixed lengths, and long ones whose last token is at the end of the context."""
    draw = random.Random(f"{name} {arguments.seed}")
    vocabulary = SHAPES[name]["vocab_size"]
    lengths = [1 + (i * 37) % 256 for i in range(arguments.sequences)]
    lengths += [arguments.context - arguments.new_tokens] * arguments.long
    prompts = [[draw.randrange(vocabulary) for _ in range(length)] for length in lengths]
    with open(path, "w") as file:
        for i, prompt in enumerate(prompts):
            file.write(json.dumps({"prompt": prompt, "seed": i, "temperature": 1.0}) + "\n")
    return prompts


def differing(got, want):
    import torch

    return int((torch.tensor(got).view(torch.int32) != want.view(torch.int32)).sum())


def compare(name, arguments, folder):
    import torch
    from safetensors.torch import load_file, save_file

    import stock_torch

    clock = time.time()
    took = {}

    def lap(what):
        nonlocal clock
        torch.cuda.synchronize()
        took[what] = time.time() - clock
        clock = time.time()

    model = stock_torch.make_model(SHAPES[name], arguments.seed, folder / "model")
    lap("make")
    prompts = write_prompts(folder / "prompts.jsonl", name, arguments)
    worker = ["--model", folder / "model", "--backend", "cuda", "--max-context", arguments.context,
              "--max-running", 256, "--pages", arguments.pages]
    said = run(arguments.rollout, "generate", *worker, "--max-step-tokens", 2048, "--prompts",
               folder / "prompts.jsonl", "--out", folder / "out.jsonl", "--max-new-tokens",
               arguments.new_tokens)
    lap("generate")
    samples = [json.loads(line) for line in open(folder / "out.jsonl")]
    texts = [prompt + sample["ids"] for prompt, sample in zip(prompts, samples, strict=True)]
    want = stock_torch.logprobs(model, texts)
    lap("torch")
    del model
    torch.cuda.empty_cache()

    wrong = tokens = 0
    for sample, values in zip(samples, want):
        made = len(sample["ids"])
        wrong += differing(sample["logprobs"], values[-made:])
        tokens += made
    print(f"{name:13} decode: {wrong} of {tokens} log-probabilities of generated tokens differ, "
          f"{len(samples)} sequences, contexts 1 to {max(map(len, texts))}", flush=True)

    long_texts = [text for text in texts if len(text) == arguments.context][:2]
    short_texts = [text for text in texts if len(text) <= 256 + arguments.new_tokens]
    for step_tokens, chosen in ((333, long_texts), (8192, long_texts), (1000, short_texts)):
        length = max(map(len, chosen))
        ids = torch.zeros((len(chosen), length), dtype=torch.int32)
        for row, text in enumerate(chosen):
            ids[row, :len(text)] = torch.tensor(text, dtype=torch.int32)
        save_file({"input_ids": ids}, folder / "ids.safetensors")
        run(arguments.rollout, "score", *worker, "--max-step-tokens", step_tokens, "--tokens",
            folder / "ids.safetensors", "--out", folder / "scores.safetensors")
        scores = load_file(folder / "scores.safetensors")["logprobs"]
        bad = count = 0
        for row, text in enumerate(chosen):
            values = want[texts.index(text)]
            bad += differing(scores[row, :len(text) - 1].tolist(), values)
            count += len(text) - 1
        print(f"{name:13} prefill in chunks of {step_tokens}: {bad} of {count} differ", flush=True)
        wrong += bad
    lap("score")
    print(f"{name:13} " + ", ".join(f"{what} {seconds:.0f} s" for what, seconds in took.items()) + "; " +
          next(line for line in said.splitlines() if line.startswith("generated")), flush=True)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollout", required=True, help="the program `rollout`")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all of them")
    parser.add_argument("--sequences", type=int, default=250, help="of mixed lengths")
    parser.add_argument("--long", type=int, default=6, help="that end at the longest context")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--pages", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--folder", help="where models are written; default: a temporary directory")
    arguments = parser.parse_args()
    try:
        import torch
        import transformers
    except ImportError as error:
        print(f"rollout_equals_torch: {error}", file=sys.stderr)
        return 3
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        print("rollout_equals_torch: no Hopper GPU here, nothing to compare with", file=sys.stderr)
        return 3
    import stock_torch

    stock_torch.set_switches()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, "
          f"{torch.cuda.get_device_name()}, seed {arguments.seed}")
    wrong = 0
    for name in arguments.shape or SHAPES:
        folder = pathlib.Path(tempfile.mkdtemp(dir=arguments.folder))
        try:
            wrong += compare(name, arguments, folder)
        finally:
            shutil.rmtree(folder)
    print("0 differ" if wrong == 0 else f"{wrong} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
