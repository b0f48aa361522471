"""A stock PyTorch trainer's side: its switches, a hash-initialised model on the GPU, its log-probabilities."""
import json
import math
import pathlib

import torch

GOLDEN_RATIO = 0x9E3779B97F4A7C15
MASK64 = (1 << 64) - 1


def set_switches():
    """The four switches of docs/numerics.md."""
    torch.backends.cuda.preferred_blas_library("cublaslt")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (False, False)
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = (False, False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def signed(value):
    value &= MASK64
    return value - (1 << 64) if value >= 1 << 63 else value


def shift_right(z, count):
    """A logical shift of int64."""
    return (z >> count) & ((1 << (64 - count)) - 1)


def hash_uniform(name, seed, begin, count, low, high):
    """Elements [begin, begin + count) of the hash of docs/numerics.md: what `rollout make-model` writes."""
    start = 0xCBF29CE484222325
    for byte in name.encode():
        start = ((start ^ byte) * 0x100000001B3) & MASK64
    start = (start + (seed + begin) * GOLDEN_RATIO) & MASK64
    z = torch.arange(1, count + 1, device="cuda", dtype=torch.int64) * signed(GOLDEN_RATIO)
    z += signed(start)
    z = (z ^ shift_right(z, 30)) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ shift_right(z, 27)) * signed(0x94D049BB133111EB)
    z = shift_right(z ^ shift_right(z, 31), 40)
    as_fp32 = torch.tensor([high - low, low], dtype=torch.float32, device="cuda")
    return (z.float() * 2.0**-24) * as_fp32[0] + as_fp32[1]


def fill(parameter, name, seed, tied):
    if parameter.dim() == 1:
        low, high = (0.75, 1.25) if "norm" in name else (-0.5, 0.5)
    elif "embed_tokens" in name and not tied:
        low, high = -1.0, 1.0
    else:
        high = math.sqrt(3.0 / parameter.shape[-1])
        low = -high
    flat = parameter.data.view(-1)
    piece = 1 << 26  # elements at a time: the hash works in 64 bits
    for begin in range(0, flat.numel(), piece):
        count = min(piece, flat.numel() - begin)
        flat[begin:begin + count].copy_(hash_uniform(name, seed, begin, count, low, high))


def make_model(config, seed, directory):
    """A stock model on the GPU, and its Hugging Face directory for the worker."""
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    # RoPE's frequencies must be computed on the GPU (docs/numerics.md), so the model is built there.
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(directory), dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    tied = config["tie_word_embeddings"]
    tensors = {}
    for name, parameter in model.named_parameters():
        fill(parameter, name, seed, tied)
        tensors[name] = parameter.data
    save_file({name: tensor.cpu() for name, tensor in tensors.items()}, directory / "model.safetensors",
              metadata={"format": "pt"})
    return model


def logprobs(model, sequences):
    """Of each token after the first: log_softmax(logits.float()), as stock trainers compute it.

    Sequences are padded at the end to one length: attention is causal, so nothing before sees it. Batches are
    large enough that FlashAttention does not split the keys (docs/numerics.md).
    """
    results = [None] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    budget = 1 << 15  # tokens of a batch
    begin = 0
    while begin < len(order):
        end = begin + 1
        while end < len(order) and (end + 1 - begin) * len(sequences[order[end]]) <= budget:
            end += 1
        batch = order[begin:end]
        longest = len(sequences[batch[-1]])
        rows = max(len(batch), 16 if longest <= 2048 else 1)  # repeated rows keep the grid large
        ids = torch.zeros((rows, longest), dtype=torch.int64)
        for row in range(rows):
            sequence = sequences[batch[row % len(batch)]]
            ids[row, :len(sequence)] = torch.tensor(sequence)
        ids = ids.cuda()
        with torch.no_grad():
            logits = model(ids).logits
            for row, index in enumerate(batch):  # one at a time: fp32 logits are large
                length = len(sequences[index])
                values = torch.log_softmax(logits[row, :length - 1].float(), -1)
                results[index] = values.gather(-1, ids[row, 1:length, None]).squeeze(-1).cpu()
        begin = end
    return results
