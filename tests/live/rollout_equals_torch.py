#!/usr/bin/env python3
"""Holds rollouts to a stock PyTorch trainer, live: generated tokens, and every bit of their log-probabilities.

Needs a Hopper GPU, torch, transformers and safetensors. For each shape it makes a hash-initialised Hugging Face
model on the GPU, lets `rollout generate --backend cuda` sample from it - many sequences of mixed lengths at once, and
a few that end at the longest context -, runs the stock forward pass on the same ids, and compares the
log-probabilities of every generated token as bits. Then `rollout score` computes all of them again by prefill, in
chunks of two sizes. Exit code 0: none differs; 1: some do; 3: there is nothing to run on.

    tests/live/rollout_equals_torch.py --rollout build/cuda/bin/rollout --shape qwen3-8b

Time goes into models that are written and read again: they lie in memory (/dev/shm) where that has room, and the
runs of `rollout score`, which read one each, go side by side (--at-once).
"""
import argparse
import concurrent.futures
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

from shapes import SHAPES, longest_context


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command[:2]))} failed: {done.stderr[-2000:]}")
    return done.stdout


def model_bytes(config):
    """About: bf16 weights, and none is forgotten."""
    width, heads = config["hidden_size"], config["num_attention_heads"] + config["num_key_value_heads"]
    layer = 3 * width * config["intermediate_size"] + 2 * heads * config["head_dim"] * width
    return 2 * (config["num_hidden_layers"] * layer + 2 * width * config["vocab_size"])


def choose_folder(name, arguments):
    """Where the model is written: the named folder, or memory with room to spare, or the temporary directory."""
    memory = pathlib.Path("/dev/shm")
    if arguments.folder:
        return arguments.folder
    if memory.is_dir() and shutil.disk_usage(memory).free > 2 * model_bytes(SHAPES[name]):
        return memory
    return None


def write_prompts(path, name, context, arguments):
    """Sequences of mixed lengths, and long ones whose last token is at the end of the context."""
    draw = random.Random(f"{name} {arguments.seed}")
    vocabulary = SHAPES[name]["vocab_size"]
    lengths = [1 + (i * 37) % 256 for i in range(arguments.sequences)]
    lengths += [context - arguments.new_tokens] * arguments.long
    prompts = [[draw.randrange(vocabulary) for _ in range(length)] for length in lengths]
    with open(path, "w") as file:
        for i, prompt in enumerate(prompts):
            file.write(json.dumps({"prompt": prompt, "seed": i, "temperature": 1.0}) + "\n")
    return prompts


def differing(got, want):
    import torch

    return int((torch.tensor(got).view(torch.int32) != want.view(torch.int32)).sum())


def score(name, step_tokens, texts, context, arguments, folder):
    """Of every token of each text after its first, by prefill in chunks of `step_tokens`."""
    import torch
    from safetensors.torch import load_file, save_file

    ids = torch.zeros((len(texts), max(map(len, texts))), dtype=torch.int32)
    for row, text in enumerate(texts):
        ids[row, :len(text)] = torch.tensor(text, dtype=torch.int32)
    given, out = folder / f"ids{step_tokens}.safetensors", folder / f"scores{step_tokens}.safetensors"
    save_file({"input_ids": ids}, given)
    # Pages for a few sequences of the whole context: three of these runs must fit beside each other.
    pages = min(arguments.pages, 4 * -(-context // 64))
    run(arguments.rollout, "score", "--model", folder / "model", "--backend", "cuda", "--max-context", context,
        "--max-running", 256, "--pages", pages, "--max-step-tokens", step_tokens, "--tokens", given, "--out", out)
    scores = load_file(out)["logprobs"]
    return [scores[row, :len(text) - 1].tolist() for row, text in enumerate(texts)]


def compare_decode(name, samples, want):
    wrong = tokens = 0
    for sample, values in zip(samples, want, strict=True):
        made = len(sample["ids"])
        wrong += differing(sample["logprobs"], values[-made:])
        tokens += made
    print(f"{name:14} decode: {wrong} of {tokens} log-probabilities of generated tokens differ, "
          f"{len(samples)} sequences, contexts 1 to {max(len(values) + 1 for values in want)}", flush=True)
    return wrong


def compare_prefill(name, texts, want, context, arguments, folder):
    long_texts = [text for text in texts if len(text) == context][:2]
    short_texts = [text for text in texts if len(text) <= 256 + arguments.new_tokens]
    runs = [(step_tokens, chosen) for step_tokens, chosen in
            ((333, long_texts), (8192, long_texts), (1000, short_texts)) if chosen]
    with concurrent.futures.ThreadPoolExecutor(arguments.at_once) as pool:
        scores = pool.map(lambda one: score(name, *one, context, arguments, folder), runs)
        wrong = 0
        for (step_tokens, chosen), rows in zip(runs, scores, strict=True):
            values = [want[texts.index(text)] for text in chosen]
            bad = sum(differing(row, of_torch) for row, of_torch in zip(rows, values, strict=True))
            print(f"{name:14} prefill in chunks of {step_tokens}: {bad} of {sum(map(len, rows))} differ", flush=True)
            wrong += bad
    return wrong


def compare(name, arguments, folder):
    import torch

    import stock_torch

    clock = time.time()
    took = {}

    def lap(what):
        nonlocal clock
        torch.cuda.synchronize()
        took[what] = time.time() - clock
        clock = time.time()

    context = min(arguments.context, longest_context(SHAPES[name]))
    model = stock_torch.make_model(SHAPES[name], arguments.seed, folder / "model")
    lap("make")
    prompts = write_prompts(folder / "prompts.jsonl", name, context, arguments)
    said = run(arguments.rollout, "generate", "--model", folder / "model", "--backend", "cuda", "--max-context",
               context, "--max-running", 256, "--pages", arguments.pages, "--max-step-tokens", 2048, "--prompts",
               folder / "prompts.jsonl", "--out", folder / "out.jsonl", "--max-new-tokens", arguments.new_tokens)
    lap("generate")
    samples = [json.loads(line) for line in open(folder / "out.jsonl")]
    texts = [prompt + sample["ids"] for prompt, sample in zip(prompts, samples, strict=True)]
    want = stock_torch.logprobs(model, texts)
    lap("torch")
    del model
    torch.cuda.empty_cache()

    wrong = compare_decode(name, samples, want)
    wrong += compare_prefill(name, texts, want, context, arguments, folder)
    lap("score")
    print(f"{name:14} " + ", ".join(f"{what} {seconds:.0f} s" for what, seconds in took.items()) + "; " +
          next(line for line in said.splitlines() if line.startswith("generated")), flush=True)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollout", required=True, help="the program `rollout`")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all of them")
    parser.add_argument("--sequences", type=int, default=250, help="of mixed lengths")
    parser.add_argument("--long", type=int, default=6, help="that end at the longest context")
    parser.add_argument("--context", type=int, default=8192, help="at most; some shapes end before")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--pages", type=int, default=2560)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=3, help="runs of `rollout score` side by side on the GPU")
    parser.add_argument("--folder", help="where models are written; default: /dev/shm, or a temporary directory")
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
        folder = pathlib.Path(tempfile.mkdtemp(dir=choose_folder(name, arguments)))
        try:
            wrong += compare(name, arguments, folder)
        except RuntimeError as error:
            sys.exit(f"rollout_equals_torch: {error}")
        finally:
            shutil.rmtree(folder)
    print("0 differ" if wrong == 0 else f"{wrong} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
