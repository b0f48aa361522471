"""A Qwen3 on the contract's operations: small, readable, for a trainer on a CPU. Parameters have Hugging Face's names,
so that Publisher.push(model.named_parameters()) is all that a worker needs.
"""
from __future__ import annotations

import json
import os
import pathlib

import torch
from torch import nn

from .. import _core
from ..errors import CorruptError, UnsupportedError
from . import ops
from .batches import Packed


def rope_table(config_json: str, positions: int) -> torch.Tensor:
    """Cosines and sines of positions 0 ... positions - 1: (positions, 2 * E) bf16."""
    bits = torch.from_numpy(_core.rope_table(config_json, positions).view("int16"))
    return bits.view(torch.bfloat16).view(positions, -1)


class Attention(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        width, head = config["hidden_size"], config["head_dim"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_width, self.epsilon = head, config["rms_norm_eps"]
        self.q_proj = _linear(width, self.heads * head)
        self.k_proj = _linear(width, self.kv_heads * head)
        self.v_proj = _linear(width, self.kv_heads * head)
        self.o_proj = _linear(self.heads * head, width)
        self.q_norm, self.k_norm = _Weight(head), _Weight(head)

    def forward(self, x, positions, lengths, cos_sin):
        rows = x.shape[0]
        query = ops.linear(x, self.q_proj.weight).view(rows, self.heads, self.head_width)
        key = ops.linear(x, self.k_proj.weight).view(rows, self.kv_heads, self.head_width)
        value = ops.linear(x, self.v_proj.weight).view(rows, self.kv_heads, self.head_width)
        query = ops.rope(ops.rms_norm(query, self.q_norm.weight, self.epsilon), positions, cos_sin)
        key = ops.rope(ops.rms_norm(key, self.k_norm.weight, self.epsilon), positions, cos_sin)
        return ops.linear(ops.attention(query, key, value, lengths).reshape(rows, -1), self.o_proj.weight)


class FeedForward(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.gate_proj = _linear(config["hidden_size"], config["intermediate_size"])
        self.up_proj = _linear(config["hidden_size"], config["intermediate_size"])
        self.down_proj = _linear(config["intermediate_size"], config["hidden_size"])

    def forward(self, x):
        gate, up = ops.linear(x, self.gate_proj.weight), ops.linear(x, self.up_proj.weight)
        return ops.linear(ops.silu_mul(gate, up), self.down_proj.weight)


class Layer(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.epsilon = config["rms_norm_eps"]
        self.input_layernorm, self.post_attention_layernorm = (_Weight(config["hidden_size"]) for _ in range(2))
        self.self_attn, self.mlp = Attention(config), FeedForward(config)

    def forward(self, x, positions, lengths, cos_sin):
        normed = ops.rms_norm(x, self.input_layernorm.weight, self.epsilon)
        x = x + self.self_attn(normed, positions, lengths, cos_sin)
        return x + self.mlp(ops.rms_norm(x, self.post_attention_layernorm.weight, self.epsilon))


class Qwen3(nn.Module):
    """Of a Hugging Face directory that holds a dense Qwen3 in bf16."""

    def __init__(self, directory: str | os.PathLike):
        super().__init__()
        folder = pathlib.Path(directory)
        self.config_json = (folder / "config.json").read_text()
        config = json.loads(self.config_json)
        if config.get("model_type") != "qwen3" or config.get("attention_bias"):
            raise UnsupportedError("this module is a dense qwen3 without biases: write another over ops for "
                                   f"{config.get('model_type')!r}")
        self.tied, self.epsilon = config["tie_word_embeddings"], config["rms_norm_eps"]
        self.model = nn.Module()
        self.model.embed_tokens = _linear(config["hidden_size"], config["vocab_size"])
        self.model.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.model.norm = _Weight(config["hidden_size"])
        if not self.tied:
            self.lm_head = _linear(config["hidden_size"], config["vocab_size"])
        missing, unknown = self.load_state_dict(read_safetensors(folder), strict=False)
        if missing or unknown:
            raise CorruptError(f"{folder}: tensors are missing {missing} or not of this model {unknown}")

    def forward(self, batch: Packed) -> torch.Tensor:
        """Logits (T, V), bf16."""
        lengths = torch.tensor(batch.lengths)
        cos_sin = rope_table(self.config_json, batch.max_length)
        x = self.model.embed_tokens.weight[batch.ids]
        for layer in self.model.layers:
            x = layer(x, batch.positions, lengths, cos_sin)
        head = self.model.embed_tokens if self.tied else self.lm_head
        return ops.linear(ops.rms_norm(x, self.model.norm.weight, self.epsilon), head.weight)

    def token_logprobs(self, batch: Packed) -> list[torch.Tensor]:
        """Of each token of each sequence after its first, fp32, with gradients."""
        logits = self(batch)
        starts = batch.cu_seqlens[:-1].tolist()
        rows = torch.cat([torch.arange(s, s + n - 1) for s, n in zip(starts, batch.lengths)])
        values = ops.token_logprobs(logits[rows], batch.ids[rows + 1])
        return list(values.split([n - 1 for n in batch.lengths]))


def read_safetensors(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    """Every tensor of the directory's *.safetensors files, which must be bf16."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        if size > len(data) - 8:
            raise CorruptError(f"{path} ends before its header does")
        for name, entry in json.loads(data[8:8 + size]).items():
            if name == "__metadata__":
                continue
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            if entry["dtype"] != "BF16" or not 8 + size <= begin <= end <= len(data):
                raise CorruptError(f"{path}: tensor '{name}' is not bf16 or lies outside the file")
            bits = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.int16)
            tensors[name] = bits.view(torch.bfloat16).view(entry["shape"])
    return tensors


class _Weight(nn.Module):
    def __init__(self, *shape: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(*shape, dtype=torch.bfloat16))


def _linear(in_features: int, out_features: int) -> _Weight:
    return _Weight(out_features, in_features)
