"""The doctor: a forward pass that keeps the contract is found whole, and each way to leave it is found where it is."""
import json
import types

import pytest

torch = pytest.importorskip("torch")

import exact_rollout  # noqa: E402
from exact_rollout import Client, Publisher  # noqa: E402
from exact_rollout.torch import doctor, ops  # noqa: E402
from exact_rollout.torch.qwen3 import read_safetensors, rope_table  # noqa: E402

nn = torch.nn
IDS = torch.arange(1, 25).view(2, 12)


def logprobs(logits, ids):
    """A CPU's own log_softmax has other bits."""
    return ops.token_logprobs(logits.reshape(-1, logits.shape[-1]), ids.reshape(-1)).view(ids.shape)


class Linear(nn.Linear):
    """A Linear whose forward is the contract's, as a Hopper GPU's is."""

    def forward(self, x):
        return ops.linear(x, self.weight)


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = 1e-6

    def forward(self, x):
        return ops.rms_norm(x, self.weight, self.variance_epsilon)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, head = c, c.head_dim
        for name, rows in (("q", c.num_attention_heads), ("k", c.num_key_value_heads), ("v", c.num_key_value_heads)):
            setattr(self, f"{name}_proj", Linear(c.hidden_size, rows * head, bias=False))
        self.o_proj = Linear(c.num_attention_heads * head, c.hidden_size, bias=False)
        self.q_norm, self.k_norm = Norm(head), Norm(head)
        self.core, self.table = ops.attention, rope_table

    def forward(self, x):
        batch, length, _ = x.shape
        split = lambda t: t.reshape(batch, length, -1, self.c.head_dim)  # noqa: E731
        flat = lambda t: t.reshape(batch * length, -1, self.c.head_dim)  # noqa: E731
        q, k = self.q_norm(split(self.q_proj(x))), self.k_norm(split(self.k_proj(x)))
        table = self.table(self.c.to_json_string(), length)
        where = torch.arange(length).repeat(batch)
        q, k = ops.rope(flat(q), where, table), ops.rope(flat(k), where, table)
        out = self.core(q, k, flat(self.v_proj(x)), torch.full((batch,), length))
        return self.o_proj(out.to(x.dtype).reshape(batch, length, -1))


class FeedForward(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj, self.up_proj = (Linear(c.hidden_size, c.intermediate_size, bias=False) for _ in range(2))
        self.down_proj = Linear(c.intermediate_size, c.hidden_size, bias=False)
        self.activation = ops.silu_mul

    def forward(self, x):
        return self.down_proj(self.activation(self.gate_proj(x), self.up_proj(x)))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(c.hidden_size), Norm(c.hidden_size)
        self.self_attn, self.mlp = Attention(c), FeedForward(c)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class StockLike(nn.Module):
    """Hugging Face's modules and names, on a machine without its GPU."""

    def __init__(self, directory):
        super().__init__()
        text = (directory / "config.json").read_text()
        self.config = c = types.SimpleNamespace(**json.loads(text), to_json_string=lambda: text)
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.model.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.model.norm = Norm(c.hidden_size)
        self.lm_head = Linear(c.hidden_size, c.vocab_size, bias=False)
        self.to(torch.bfloat16)
        self.load_state_dict(read_safetensors(directory), strict=False)
        self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids):
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x)
        return types.SimpleNamespace(logits=self.lm_head(self.model.norm(x)))


@pytest.fixture
def stock(model):
    return StockLike(model)


def test_a_forward_pass_that_keeps_the_contract_is_found_whole(stock, client):
    found = doctor(stock, IDS, client, logprobs)
    assert found.ok and "every bit" in str(found), str(found)
    assert found.stages == 2 * 13 + 2 + 2  # a layer's 7 linears, 4 norms, attention, SwiGLU; norm and head; scores


def split_linear(layer):
    """Two halves of K, whose sums are added in bf16: what cuBLAS may do without the switches."""
    def forward(x):
        halves = zip(x.float().chunk(2, -1), layer.weight.float().chunk(2, -1))
        first, second = (nn.functional.linear(a, b).bfloat16() for a, b in halves)
        return first + second
    layer.forward = forward


def plain_norm(norm):
    norm.forward = lambda x: (ops._plain_rms_norm(x.float(), norm.weight.float(), 1e-6)).bfloat16()


def plain_attention(attention):
    attention.core = lambda q, k, v, lengths: ops._plain_attention(q.float(), k.float(), v.float(), lengths).bfloat16()


def other_frequencies(attention):
    attention.table = lambda text, length: rope_table(text.replace("10000.0", "20000.0"), length)


def plain_activation(mlp):
    mlp.activation = lambda g, u: (nn.functional.silu(g.float()) * u.float()).bfloat16()


@pytest.mark.parametrize("where, spoil, operation, words", [
    ("model.layers.1.self_attn.k_proj", split_linear, "linear", "match_contract"),
    ("lm_head", split_linear, "linear", "match_contract"),
    ("model.layers.0.post_attention_layernorm", plain_norm, "norm", "unpatched"),
    ("model.layers.1.self_attn", plain_attention, "attention", "sdpa"),
    ("model.layers.0.self_attn", other_frequencies, "attention", "built on the GPU"),
    ("model.layers.1.mlp", plain_activation, "activation", "SwiGLU"),
])
def test_the_first_operation_that_leaves_the_contract_is_named(stock, where, spoil, operation, words):
    spoil(dict(stock.named_modules())[where])
    found = doctor(stock, IDS, logprobs=logprobs)
    assert not found.ok
    assert (found.first.stage, found.first.operation) == (where, operation), str(found)
    assert 0 < found.first.differing <= found.first.elements and found.first.ulps >= 1
    assert words in str(found)


def test_fp32_norms_as_autocast_leaves_them_are_named(stock):
    norm = stock.model.layers[0].input_layernorm
    norm.forward = lambda x: ops._plain_rms_norm(x.float(), norm.weight.float(), 1e-6)
    stock.model.layers[0].self_attn.forward = lambda x: x.bfloat16()
    found = doctor(stock, IDS, logprobs=logprobs)
    assert found.first.stage == "model.layers.0.input_layernorm" and "autocast" in str(found)


@pytest.mark.parametrize("way", [
    lambda logits, ids: torch.log_softmax(logits, -1).gather(-1, ids.unsqueeze(-1)).squeeze(-1),  # in bf16
    lambda logits, ids: logprobs((logits.float() / 0.99).bfloat16(), ids),
    lambda logits, ids: (logits.double().gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.double().logsumexp(-1)).float(),
])
def test_other_ways_to_log_probabilities_are_named(stock, way):
    found = doctor(stock, IDS, logprobs=way)
    assert found.first.stage == "logprobs" and "token_logprobs" in str(found), str(found)


def test_other_weights_in_the_worker_are_named(stock, worker, other_model):
    with Client(worker.endpoint) as client, Publisher(worker.endpoint) as publisher:
        assert doctor(stock, IDS, client, logprobs).ok
        publisher.push(read_safetensors(other_model))
        found = doctor(stock, IDS, client, logprobs)
        assert found.first.operation == "worker" and "push the model's parameters" in str(found)
        publisher.push(stock.named_parameters())
        assert doctor(stock, IDS, client, logprobs).ok


def test_what_it_can_not_look_at_is_refused(stock):
    with pytest.raises(exact_rollout.InvalidError, match="no module"):
        doctor(nn.Linear(2, 2), IDS)
    with pytest.raises(exact_rollout.InvalidError, match="two ids"):
        doctor(stock, [[1]])
