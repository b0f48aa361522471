"""match_contract and the helpers for stock trainers; what needs a GPU is looked at there."""
import types
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import exact_rollout  # noqa: E402
from exact_rollout import _core  # noqa: E402
from exact_rollout.torch import contract, match_contract, may_split_keys, pack, pad_right, token_logprobs  # noqa: E402


def report_of(**arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return match_contract(**arguments)


def whats(report):
    return " | ".join(finding.what for finding in report.findings)


class Stock(torch.nn.Module):
    """What match_contract reads of a Hugging Face model."""

    def __init__(self, config_json, inv_freq, dtype=torch.bfloat16, attention="sdpa"):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, dtype=dtype))
        self.register_buffer("inv_freq", torch.from_numpy(inv_freq.copy()))
        self.config = types.SimpleNamespace(_attn_implementation=attention, num_attention_heads=2, head_dim=32,
                                            hidden_size=64, to_json_string=lambda: config_json)


@pytest.fixture
def stock(model):
    text = (model / "config.json").read_text()
    return lambda **changes: Stock(text, changes.pop("inv_freq", _core.rope_frequencies(text)), **changes)


def test_without_a_hopper_gpu_the_report_says_so_and_strict_raises():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    report = report_of()
    assert not report.ok and "no GPU" in whats(report) and "does not hold" in str(report)
    with warnings.catch_warnings(), pytest.raises(exact_rollout.ContractMismatchError, match="no GPU"):
        warnings.simplefilter("ignore")
        match_contract(strict=True)


def test_a_switch_that_pytorch_does_not_take_is_an_error_by_its_name(monkeypatch):
    def refuse():
        raise RuntimeError("no such thing")

    taken = []
    monkeypatch.setattr(contract, "_SWITCHES", [("switch_a", lambda: taken.append(1)), ("switch_b", refuse)])
    report = report_of()
    assert taken == [1] and report.switches == ["switch_a"]
    assert "`switch_b` (no such thing)" in whats(report)


def test_a_version_that_was_not_measured_warns(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "9.9.0")
    with pytest.warns(UserWarning, match="PyTorch 9.9.0 was not measured"):
        match_contract()


def test_a_model_as_it_should_be_has_no_finding_of_its_own(stock):
    assert whats(report_of(model=stock(), batch=512, length=64)) == whats(report_of())


@pytest.mark.parametrize("changes, words", [
    ({"dtype": torch.float32}, "not bfloat16, the first is 'weight'"),
    ({"attention": "eager"}, "attention is 'eager'"),
    ({"inv_freq": np.full(16, 0.5, np.float32)}, "16 of 16 rotary frequencies"),
])
def test_what_breaks_a_models_bits_is_named(stock, changes, words):
    report = report_of(model=stock(**changes))
    assert words in whats(report) and not report.ok


def test_frequencies_of_a_cpu_are_told_from_those_of_a_gpu(stock, model):
    of_gpu = _core.rope_frequencies((model / "config.json").read_text())
    one_off = of_gpu.copy()
    one_off[3] = np.nextafter(one_off[3], np.float32(0))
    assert "1 of 16 rotary frequencies" in whats(report_of(model=stock(inv_freq=one_off)))


def test_frequencies_that_a_cast_rounded_are_named(stock):
    model = stock()
    model.inv_freq = model.inv_freq.bfloat16()
    assert "a cast of the whole model rounded them" in whats(report_of(model=model))


def test_autocast_and_compiled_models_are_named(stock):
    model = stock()
    model._orig_mod = None
    assert "compiled" in whats(report_of(model=model))


def test_batches_that_may_split_the_keys_warn(stock):
    # 0.8 * 2 * 132 multiprocessors = 211.2 blocks of 64 queries and one head
    assert may_split_keys(1, 32, 400, 128) is False  # 32 * 7 = 224 blocks
    assert may_split_keys(1, 30, 400, 128) is True  # 210
    assert may_split_keys(1, 1, 64, 128) is False  # one block of keys: nothing to split
    with pytest.warns(UserWarning, match="Take batches of 36 or more"):
        match_contract(model=stock(), batch=2, length=129)


def test_packs_and_pads_keep_ids_and_lengths():
    packed = pack([[1, 2, 3], np.array([4, 5]), torch.tensor([6])])
    assert packed.ids.tolist() == [1, 2, 3, 4, 5, 6] and packed.positions.tolist() == [0, 1, 2, 0, 1, 0]
    assert packed.cu_seqlens.tolist() == [0, 3, 5, 6] and packed.max_length == 3
    assert [rows.tolist() for rows in packed.split(packed.ids)] == [[1, 2, 3], [4, 5], [6]]
    ids, lengths = pad_right([[1, 2, 3], [4]], pad_id=9)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]] and lengths == [3, 1]
    with pytest.raises(exact_rollout.InvalidError):
        pack([[1], []])


def test_token_logprobs_are_those_of_log_softmax_and_refuse_what_loses_bits():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((2, 5, 64), generator=generator).to(torch.bfloat16).requires_grad_()
    targets = torch.randint(0, 64, (2, 5), generator=generator)
    got = token_logprobs(logits, targets)
    want = torch.log_softmax(logits.float(), -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    assert torch.equal(got, want) and got.dtype == torch.float32
    got.sum().backward()
    assert logits.grad is not None
    with pytest.raises(exact_rollout.InvalidError, match="bfloat16"):
        token_logprobs(logits.float(), targets)
    with pytest.raises(exact_rollout.InvalidError, match="shape"):
        token_logprobs(logits, targets[0])
