"""The contract's operations in torch: the worker's bits forward, true gradients backward."""
import json

import pytest

torch = pytest.importorskip("torch")

import exact_rollout  # noqa: E402
from exact_rollout import Client, Publisher, Scorer, differing  # noqa: E402
from exact_rollout.torch import ops, pack  # noqa: E402
from exact_rollout.torch.qwen3 import Qwen3, rope_table  # noqa: E402


def random(shape, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(torch.bfloat16)


def close(a, b, tolerance):
    return (a.float() - b.float()).abs().max() <= tolerance * max(1.0, float(b.float().abs().max()))


# 2^-7: one bf16 rounding of values of the largest size; sums of ten such stay below four of them.
ROUNDING = 4 * 2.0**-7

CASES = {
    "linear": (ops.linear, torch.nn.functional.linear, lambda: (random((5, 48), 1), random((24, 48), 2, 0.2), random((24,), 3))),
    "rms_norm": (lambda x, w: ops.rms_norm(x, w, 1e-6), lambda x, w: ops._plain_rms_norm(x, w, 1e-6),
                 lambda: (random((7, 64), 4), random((64,), 5))),
    "silu_mul": (ops.silu_mul, lambda g, u: torch.nn.functional.silu(g) * u, lambda: (random((3, 40), 6), random((3, 40), 7))),
    "attention": (lambda q, k, v: ops.attention(q, k, v, torch.tensor([3, 9, 70])),
                  lambda q, k, v: ops._plain_attention(q, k, v, torch.tensor([3, 9, 70])),
                  lambda: (random((82, 4, 32), 8), random((82, 2, 32), 9), random((82, 2, 32), 10))),
    "token_logprobs": (lambda x: ops.token_logprobs(x, torch.tensor([3, 0, 63])),
                       lambda x: ops._plain_token_logprobs(x, torch.tensor([3, 0, 63])), lambda: (random((3, 64), 11, 3.0),)),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_plain_expression(name):
    exact, plain, make = CASES[name]
    inputs = [t.requires_grad_() for t in make()]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    got, want = exact(*inputs), plain(*doubles)
    assert got.shape == want.shape and close(got, want, ROUNDING)
    weight = random(got.shape, 99)
    (got.float() * weight.float()).sum().backward()
    (want * weight.double()).sum().backward()
    for tensor, double in zip(inputs, doubles):
        assert tensor.grad.dtype == torch.bfloat16 and close(tensor.grad, double.grad, ROUNDING)


def test_rope_turns_and_its_gradient_turns_back(model):
    table = rope_table((model / "config.json").read_text(), 64)
    positions = torch.tensor([0, 1, 63, 7])
    x = random((4, 2, 32), 12).requires_grad_()
    y = ops.rope(x, positions, table)
    assert torch.equal(y[0], x[0]) and not torch.equal(y[1], x[1])
    y.sum().backward()
    double = x.detach().double().requires_grad_()
    ops._plain_rope(double, positions, table.double()).sum().backward()
    assert close(x.grad, double.grad, ROUNDING)


def test_operations_are_registered_for_cpu_tensors():
    x, w = random((2, 16), 1), random((8, 16), 2)
    assert torch.equal(torch.ops.exact_rollout.linear(x, w), ops.linear(x, w))


def test_gradients_come_for_what_asks_for_them_alone():
    x, w = random((2, 16), 1), random((8, 16), 2).requires_grad_()
    ops.linear(x, w).sum().backward()
    assert x.grad is None and w.grad is not None


@pytest.mark.parametrize("call, words", [
    (lambda: ops.linear(random((2, 16), 1), random((7, 16), 2)), "out_features"),
    (lambda: ops.linear(random((2, 16), 1), random((8, 32), 2)), "16 features"),
    (lambda: ops.linear(random((2, 16), 1).float(), random((8, 16), 2)), "bfloat16"),
    (lambda: ops.attention(random((4, 2, 32), 1), random((4, 1, 32), 1), random((4, 1, 32), 1), torch.tensor([3])), "lengths"),
    (lambda: ops.attention(random((4, 2, 32), 1), random((4, 1, 32), 1), random((4, 1, 32), 1), torch.tensor([4, 0])), "lengths"),
    (lambda: ops.attention(random((4, 2, 24), 1), random((4, 1, 24), 1), random((4, 1, 24), 1), torch.tensor([4])), "24"),
    (lambda: ops.token_logprobs(random((1, 64), 1), torch.tensor([64])), "64"),
    (lambda: ops.rope(random((1, 1, 32), 1), torch.tensor([5]), random((5, 64), 1)), "positions"),
])
def test_what_the_contract_does_not_cover_is_refused_by_name(call, words):
    with pytest.raises(exact_rollout.ExactError, match=words):
        call()


def test_a_torch_forward_has_the_bits_of_the_scorer(model):
    texts = [[1, 2, 3], [7] * 70, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [255, 0]]
    with torch.no_grad():
        got = Qwen3(model).token_logprobs(pack(texts))
    want = Scorer(model).score_many(texts)
    assert [differing(a, b) for a, b in zip(got, want)] == [0] * 4


def test_parameters_go_to_the_worker_as_they_are(worker, other_model):
    module = Qwen3(other_model)
    with Publisher(worker.endpoint) as publisher, Client(worker.endpoint) as client:
        assert publisher.push(module.named_parameters()).weights_digest == Scorer(other_model).weights_digest
        completion = client.generate([1, 2, 3], seed=4, max_new_tokens=10)[0]
        with torch.no_grad():
            mine = module.token_logprobs(pack([[1, 2, 3, *completion.tokens.tolist()]]))[0]
        assert differing(mine[2:], completion.logprobs) == 0
        with pytest.raises(exact_rollout.InvalidError, match="torch.float32"):
            publisher.push(module.float().named_parameters())


def test_a_tied_head_is_pushed_once(worker, model):
    module = Qwen3(model)
    state = dict(module.named_parameters())
    with Publisher(worker.endpoint) as publisher:
        want = publisher.push(state).weights_digest
        tied = {**state, "lm_head.weight": state["model.embed_tokens.weight"]}
        assert publisher.push(tied).weights_digest == want
        untied = {**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}
        with pytest.raises(exact_rollout.ExactError, match="lm_head"):
            publisher.push(untied)


def test_a_model_of_another_kind_is_refused(model, tmp_path):
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(exact_rollout.UnsupportedError, match="llama"):
        Qwen3(tmp_path)
