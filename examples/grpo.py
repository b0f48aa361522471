#!/usr/bin/env python3
"""GRPO with rollouts of exact log-probabilities: a policy learns a task that a program can verify.

On a Hopper GPU the trainer is a stock Hugging Face model (torch, transformers), on a CPU the small Qwen3 of
exact_rollout.torch. Each step prints the reward, the KL between the policy that made the rollouts and the trainer's own
forward pass (exactly 0), the fraction of clipped ratios (exactly 0), how many log-probabilities differ in any bit, and
where the time went. Exit code 1 when any differed.

    examples/grpo.py --config examples/models/tiny.json --device cpu
    examples/grpo.py --model Qwen3-0.6B --device cuda --steps 100
"""
import argparse
import math
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch

import exact_rollout
from exact_rollout.program import find_program
from exact_rollout.torch import match_contract, pack, pad_right, token_logprobs


class StockPolicy:
    """transformers' own model on a GPU, unpatched."""

    def __init__(self, model, arguments):
        from transformers import AutoModelForCausalLM

        with torch.device("cuda"):  # built there: rotary frequencies of a CPU have other bits
            self.module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="sdpa")
        length = arguments.prompt_tokens + arguments.max_new_tokens
        print(match_contract(self.module, batch=arguments.micro_batch, length=length, strict=True))

    def logprobs(self, texts):
        ids, lengths = pad_right(texts, device="cuda")
        logits = self.module(ids).logits
        values = token_logprobs(logits[:, :-1], ids[:, 1:])
        return [row[:length - 1] for row, length in zip(values, lengths)]


class SmallPolicy:
    """The contract's operations on a CPU."""

    def __init__(self, model, arguments):
        from exact_rollout.torch.qwen3 import Qwen3

        self.module = Qwen3(model)

    def logprobs(self, texts):
        return self.module.token_logprobs(pack(texts))


class MasterAdamW:
    """AdamW on fp32 copies: steps of a bf16 parameter would be lost in its rounding."""

    def __init__(self, module, learning_rate):
        self.parameters = list(module.parameters())
        self.masters = [p.detach().float().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.masters, lr=learning_rate, weight_decay=0.0)

    def step(self):
        for parameter, master in zip(self.parameters, self.masters):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(self.parameters, self.masters):
                parameter.copy_(master)


def reward_of(tokens):
    """The task: write ids that are multiples of four."""
    return float((tokens % 4 == 0).mean())


def advantages_of(rewards, group):
    table = np.array(rewards, np.float32).reshape(-1, group)
    return ((table - table.mean(1, keepdims=True)) / (table.std(1, keepdims=True) + 1e-4)).reshape(-1)


def train(policy, optimizer, samples, advantages, arguments):
    """One update on what was sampled. Returns KL, clip fraction and how many log-probabilities differ."""
    token_count = sum(len(completion) for _, completion in samples)
    kl_sum = clipped = differing = 0
    for begin in range(0, len(samples), arguments.micro_batch):
        chosen = samples[begin:begin + arguments.micro_batch]
        rows = policy.logprobs([[*prompt, *completion.tokens.tolist()] for prompt, completion in chosen])
        loss = 0
        for (prompt, completion), row, advantage in zip(chosen, rows, advantages[begin:]):
            new = row[len(prompt) - 1:]
            old = torch.from_numpy(completion.logprobs).to(new.device)
            ratio = torch.exp(new - old)
            inside = ratio.clamp(1 - arguments.clip, 1 + arguments.clip)
            loss = loss - torch.minimum(ratio * advantage, inside * advantage).sum() / token_count
            with torch.no_grad():
                kl_sum += float((ratio - 1 - (new - old)).sum())
                clipped += int((ratio != inside).sum())
            differing += exact_rollout.differing(new, completion.logprobs)
        loss.backward()
    optimizer.step()
    return kl_sum / token_count, clipped / token_count, differing, token_count


def run(model, arguments):
    policy = (StockPolicy if arguments.device == "cuda" else SmallPolicy)(model, arguments)
    optimizer = MasterAdamW(policy.module, arguments.learning_rate)
    draw = random.Random(arguments.seed)
    total_tokens = total_differing = 0
    options = ["--max-context", arguments.prompt_tokens + arguments.max_new_tokens, *arguments.worker.split()]
    with exact_rollout.Worker(model, backend=arguments.device, arguments=map(str, options)) as worker, \
            exact_rollout.Client(worker.endpoint) as client, exact_rollout.Publisher(worker.endpoint) as publisher:
        vocabulary = client.worker.vocabulary
        for step in range(arguments.steps):
            laps = [time.monotonic()]
            prompts = [[draw.randrange(vocabulary) for _ in range(arguments.prompt_tokens)]
                       for _ in range(arguments.prompts)]
            asked = [(prompt, {"seed": draw.getrandbits(63)}) for prompt in prompts]
            groups = client.generate_many(asked, n=arguments.group, max_new_tokens=arguments.max_new_tokens)
            samples = [(prompt, sample) for prompt, group in zip(prompts, groups) for sample in group]
            laps.append(time.monotonic())
            rewards = [reward_of(completion.tokens) for _, completion in samples]
            kl, clipped, differing, tokens = train(policy, optimizer, samples,
                                                   advantages_of(rewards, arguments.group), arguments)
            laps.append(time.monotonic())
            publisher.push(policy.module.named_parameters())
            laps.append(time.monotonic())
            rollout_s, train_s, sync_s = np.diff(laps)
            total_tokens, total_differing = total_tokens + tokens, total_differing + differing
            print(f"step {step + 1:3}  reward {np.mean(rewards):.3f}  KL {kl!r}  clipped {clipped!r}  "
                  f"differ {differing} of {tokens}  {tokens / (laps[-1] - laps[0]):.0f} tokens/s  "
                  f"rollout {rollout_s:.2f} s  train {train_s:.2f} s  sync {sync_s:.2f} s", flush=True)
    print(f"{arguments.steps} steps, {total_tokens} log-probabilities compared with the trainer's: "
          f"{total_differing} differ.")
    return 1 if total_differing else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a Hugging Face directory")
    source.add_argument("--config", help="a config.json: start from weights of a hash, which speak no language")
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=8, help="a step")
    parser.add_argument("--group", type=int, default=8, help="samples of a prompt")
    parser.add_argument("--prompt-tokens", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=64, help="sequences of one forward pass")
    parser.add_argument("--learning-rate", type=float, help="default: 3e-3 for --config's small models, 1e-5 for others")
    parser.add_argument("--clip", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", default="", help="more options of `rollout serve`, as one text")
    arguments = parser.parse_args()
    if arguments.learning_rate is None:
        arguments.learning_rate = 3e-3 if arguments.config else 1e-5
    if min(arguments.steps, arguments.prompts, arguments.prompt_tokens, arguments.max_new_tokens) < 1 or \
            arguments.group < 2 or not math.isfinite(arguments.learning_rate):
        parser.error("counts must be at least 1, and a group 2")
    if arguments.micro_batch < 1 or arguments.prompts * arguments.group % arguments.micro_batch != 0:
        # A smaller last batch might have its attention's keys split, which gives other bits.
        parser.error("--micro-batch must divide --prompts times --group")
    if arguments.model:
        return run(arguments.model, arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "model"
        subprocess.run([find_program(), "make-model", "--config", arguments.config, "--seed", str(arguments.seed),
                        "--out", model], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return run(model, arguments)


if __name__ == "__main__":
    sys.exit(main())
