"""Weights from Python: pushing them while a worker serves, scoring them, and what is refused."""
import threading
import time

import numpy as np
import pytest

import exact_rollout
from conftest import read_tensors
from exact_rollout import Client, Publisher, Scorer, differing

PROMPT = [5, 6, 7]


def test_a_push_changes_what_is_sampled_and_the_scorer_agrees(worker, model, other_model):
    first, second = read_tensors(model), read_tensors(other_model)
    scorer = Scorer(model)
    with Client(worker.endpoint) as client, Publisher(worker.endpoint) as publisher:
        assert client.worker.contract_id == scorer.contract_id
        assert client.worker.weights_digest == scorer.weights_digest
        old = client.generate(PROMPT, seed=1, max_new_tokens=20)[0]
        report = publisher.push(second, version=7)
        assert report.version == 7 == publisher.live_version()
        assert report.bytes == sum(array.nbytes for array in second.values())
        new = client.generate(PROMPT, seed=1, max_new_tokens=20)[0]
        for completion, tensors in ((old, first), (new, second)):
            scorer.set_weights(tensors)
            assert scorer.weights_digest == completion.versions[0].weights_digest
            logprobs = scorer.score(PROMPT + completion.tokens.tolist())
            assert differing(logprobs[len(PROMPT) - 1:], completion.logprobs) == 0
        assert differing(old.logprobs, new.logprobs) > 0
        assert publisher.push(first).version == 8  # the next one, where none is named


def test_a_scorer_of_tensors_in_memory_equals_that_of_the_files(model):
    texts = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 10]]
    want = Scorer(model).score_many(texts)
    got = Scorer(model, read_tensors(model), threads=1).score_many(texts)
    assert [differing(a, b) for a, b in zip(want, got)] == [0, 0, 0] and [len(a) for a in got] == [2, 4, 1]


def test_scoring_lets_other_threads_run(model):
    scorer = Scorer(model, threads=1)
    texts = [[seed % 256] * 400 for seed in range(60)]
    took = []
    begin = time.monotonic()
    thread = threading.Thread(target=lambda: (scorer.score_many(texts), took.append(time.monotonic() - begin)))
    thread.start()
    longest, last = 0.0, time.monotonic()
    while thread.is_alive():
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    assert longest < took[0] / 2, f"another thread stood still for {longest:.2f} s of {took[0]:.2f} s"


def test_refusals_name_the_tensor_and_leave_the_live_version(worker, model):
    tensors = read_tensors(model)
    norm = "model.norm.weight"
    with Publisher(worker.endpoint) as publisher:
        with pytest.raises(exact_rollout.InvalidError, match=f"'{norm}' is float32"):
            publisher.push({**tensors, norm: np.ones(64, np.float32)})
        with pytest.raises(exact_rollout.ExactError, match=norm):
            publisher.push({name: t for name, t in tensors.items() if name != norm})
        with pytest.raises(exact_rollout.ExactError, match=norm):
            publisher.push({**tensors, norm: np.ones(65, np.uint16)})
        with pytest.raises(exact_rollout.InvalidError, match="policy"):
            publisher.push(tensors, policy="maybe")
        with pytest.raises(exact_rollout.InvalidError, match="is no name"):
            publisher.push([(3, tensors[norm])])
        with pytest.raises(exact_rollout.InvalidError):
            publisher.push(tensors, version=1 if publisher.live_version() >= 1 else 0)
        assert publisher.push(tensors).version == publisher.live_version()


def test_arrays_that_are_not_contiguous_are_pushed_as_their_values(worker, model):
    tensors = read_tensors(model)
    name = "model.layers.0.mlp.up_proj.weight"
    strided = np.asfortranarray(tensors[name])
    assert not strided.flags.c_contiguous
    with Publisher(worker.endpoint) as publisher:
        want = publisher.push(tensors).weights_digest
        assert publisher.push({**tensors, name: strided}).weights_digest == want


def test_ml_dtypes_arrays_are_bf16(worker, model):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    tensors = read_tensors(model)
    with Publisher(worker.endpoint) as publisher:
        want = publisher.push(tensors).weights_digest
        got = publisher.push({name: array.view(ml_dtypes.bfloat16) for name, array in tensors.items()})
        assert got.weights_digest == want


def test_a_closed_publisher_says_so(worker, model):
    publisher = Publisher(worker.endpoint)
    publisher.close()
    with pytest.raises(exact_rollout.CancelledError):
        publisher.push(read_tensors(model))
