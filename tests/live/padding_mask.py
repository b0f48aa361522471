#!/usr/bin/env python3
"""What a padding mask does to a stock trainer's bits: the same ids with and without `attention_mask`.

Needs a Hopper GPU, torch and transformers. With a zero anywhere in the mask transformers gives SDPA an explicit mask,
which flash attention does not take: another kernel, other bits. An all-ones mask, or none, keeps the flash kernel;
a causal model needs no mask for padding at the end. Prints how many logits of real tokens differ.

    tests/live/padding_mask.py
"""
import pathlib
import tempfile

import torch

import stock_torch
from shapes import SHAPES


def main():
    stock_torch.set_switches()
    config = dict(SHAPES["qwen3-1.7b"], num_hidden_layers=4)
    with tempfile.TemporaryDirectory() as folder:
        model = stock_torch.make_model(config, 5, pathlib.Path(folder))
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, config["vocab_size"], (16, 512), generator=generator).cuda()
    lengths = [512 - 17 * row for row in range(16)]
    ones = torch.ones_like(ids)
    padded = ones.clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = 0
    with torch.no_grad():
        want = model(ids).logits
        for name, mask in (("all ones", ones), ("zeros at the end", padded)):
            got = model(ids, attention_mask=mask).logits
            differing = total = 0
            for row, length in enumerate(lengths):
                differing += int((got[row, :length].view(torch.int16) != want[row, :length].view(torch.int16)).sum())
                total += length * config["vocab_size"]
            print(f"attention_mask {name}: {differing} of {total} logits of real tokens differ from those without a mask")


if __name__ == "__main__":
    main()
