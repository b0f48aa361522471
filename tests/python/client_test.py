"""Rollouts from Python: results, streams, asyncio, masks, errors, and whom a wait holds up."""
import asyncio
import os
import signal
import threading
import time

import numpy as np
import pytest

import exact_rollout
from exact_rollout import Client, Completion, MaskRefused, MaskWanted, TokenChunk, differing

PROMPT = [1, 2, 3, 4]


def test_a_group_has_its_samples_with_arrays_of_the_wires_types(client):
    group = client.generate(PROMPT, n=3, seed=7, max_new_tokens=8, entropy=True, top_logprobs=2)
    assert [c.sample_index for c in group] == [0, 1, 2] and group.seed == 7
    assert group.contract_id == client.worker.contract_id
    for c in group:
        assert c.tokens.dtype == np.int32 and c.logprobs.dtype == np.float32 and len(c) == 8
        assert c.top_ids.shape == (8, 2) and c.entropies.shape == (8,) and c.finish_reason == "length"
        assert c.versions[0].begin == 0 and c.versions[0].weights_digest == client.worker.weights_digest


def test_arrays_outlive_their_completion(client):
    tokens = client.generate(PROMPT, seed=3, max_new_tokens=6)[0].tokens
    again = client.generate(PROMPT, seed=3, max_new_tokens=6)[0]
    assert tokens.tolist() == again.tokens.tolist()


def test_scores_have_the_bits_of_the_rollout(client):
    completion = client.generate(PROMPT, seed=5, max_new_tokens=12)[0]
    score = client.score(PROMPT + completion.tokens.tolist())
    assert differing(score.logprobs[len(PROMPT) - 1:], completion.logprobs) == 0
    assert score.weights_digest == client.worker.weights_digest


def test_a_stream_adds_up_to_the_result(client):
    rollout = client.submit(PROMPT, n=2, seed=9, max_new_tokens=10, stream="tokens")
    made = {0: [], 1: []}
    done = []
    for event in rollout:
        if isinstance(event, TokenChunk):
            assert event.begin == len(made[event.sample_index])
            made[event.sample_index] += event.tokens.tolist()
        else:
            assert isinstance(event, Completion)
            done.append(event.sample_index)
    group = rollout.result()
    assert sorted(done) == [0, 1]
    assert [c.tokens.tolist() for c in group] == [made[0], made[1]]
    assert [c.tokens.tolist() for c in client.generate(PROMPT, n=2, seed=9, max_new_tokens=10)] == [made[0], made[1]]


def test_asyncio_awaits_and_iterates_many_rollouts_at_once(client):
    async def one(seed):
        rollout = client.submit(PROMPT, seed=seed, max_new_tokens=6, stream="tokens")
        chunks = [event async for event in rollout if isinstance(event, TokenChunk)]
        group = await rollout
        assert sum((c.tokens.tolist() for c in chunks), []) == group[0].tokens.tolist()
        return group[0].tokens.tolist()

    async def all_of_them():
        return await asyncio.gather(*(one(seed) for seed in range(20)))

    got = asyncio.run(all_of_them())
    assert got == [client.generate(PROMPT, seed=seed, max_new_tokens=6)[0].tokens.tolist() for seed in range(20)]


def test_a_cancelled_task_cancels_its_rollout(client):
    async def main():
        task = asyncio.create_task(client.generate_async(PROMPT, max_new_tokens=450, masked=True))
        await asyncio.sleep(0)  # the task has submitted and waits for a mask that nobody gives
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    deadline = time.monotonic() + 20
    while client.status().running + client.status().waiting > 0:
        assert time.monotonic() < deadline
    assert client.generate(PROMPT, max_new_tokens=1)[0].finish_reason == "length"


def test_masks_are_asked_for_given_and_refused(client):
    rollout = client.submit(PROMPT, seed=1, max_new_tokens=3, masked=True)
    refused = 0
    for event in rollout:
        if isinstance(event, MaskWanted):
            rollout.allow(event.sample_index, event.index, [10 + event.index] if refused else [9, 8])
        elif isinstance(event, MaskRefused):
            assert event.error.code == "invalid"
            refused += 1
            rollout.allow(event.sample_index, event.index, [10 + event.index])
    assert refused == 1 and rollout.result()[0].tokens.tolist() == [10, 11, 12]


def test_cancel_gives_what_there_is(client):
    rollout = client.submit(PROMPT, max_new_tokens=500, masked=True)
    assert rollout.cancel()
    assert rollout.result(timeout=20)[0].finish_reason == "cancelled"
    assert not rollout.cancel()


def test_errors_have_the_workers_code_and_sentence(client):
    with pytest.raises(exact_rollout.InvalidError, match="top_p") as raised:
        client.generate(PROMPT, top_p=2.0)
    assert raised.value.code == "invalid" and "top_p" in raised.value.message
    with pytest.raises(ValueError):
        client.generate([99999], max_new_tokens=1)
    with pytest.raises(exact_rollout.InvalidError, match="n can't be 'two'"):
        client.submit(PROMPT, n="two")
    with pytest.raises(exact_rollout.InvalidError, match="top_k"):
        client.submit(PROMPT, top_k=2**40)
    with pytest.raises(TypeError, match="topk"):
        client.submit(PROMPT, topk=3)
    with pytest.raises(exact_rollout.InvalidError, match="vector of integers"):
        client.submit([1.5])
    with pytest.raises(exact_rollout.InvalidError, match="stream"):
        client.submit(PROMPT, stream="sometimes")


def test_another_contract_and_a_dead_endpoint_are_refused(shared_worker, tmp_path):
    with pytest.raises(exact_rollout.ContractMismatchError):
        Client(shared_worker.endpoint, contract_id="0" * 32)
    with pytest.raises(TimeoutError, match="rollout serve"):
        Client(f"ipc://{tmp_path}/nobody.sock", connect_timeout=0.2)


def test_more_than_the_worker_takes_is_exhausted_and_nothing_is_lost(model):
    with exact_rollout.Worker(model, backend="cpu", arguments=["--max-requests", "4"]) as worker, \
            Client(worker.endpoint) as client:
        flight = [client.submit(PROMPT, seed=i, max_new_tokens=3, masked=True) for i in range(4)]
        with pytest.raises(exact_rollout.ExhaustedError):
            client.submit(PROMPT)
        for rollout in flight:
            rollout.cancel()
        assert [rollout.result(20)[0].finish_reason for rollout in flight] == ["cancelled"] * 4
        groups = list(client.generate_many((([1, i], {"seed": i}) for i in range(11)), max_new_tokens=2))
        assert [group.seed for group in groups] == list(range(11))


def test_many_threads_share_one_client(client):
    wants = {seed: client.generate(PROMPT, seed=seed, max_new_tokens=4)[0].tokens.tolist() for seed in range(8)}
    wrong = []

    def work(seed):
        for _ in range(10):
            if client.generate(PROMPT, seed=seed, max_new_tokens=4)[0].tokens.tolist() != wants[seed]:
                wrong.append(seed)
            client.status()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in wants]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_waiting_lets_other_threads_run(client):
    rollout = client.submit(PROMPT, max_new_tokens=5, masked=True)
    finished = threading.Event()
    threading.Thread(target=lambda: (rollout.result(), finished.set())).start()
    assert sum(range(100000)) > 0 and not finished.is_set()
    rollout.cancel()
    assert finished.wait(20)


def test_keyboard_interrupt_ends_a_wait_and_cancels(client):
    previous = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    # A shell's background job starts with SIGINT ignored, and Python then leaves it so.
    previous_interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            client.generate(PROMPT, max_new_tokens=5, masked=True)
    finally:
        signal.signal(signal.SIGALRM, previous)
        signal.signal(signal.SIGINT, previous_interrupt)
    assert client.generate(PROMPT, max_new_tokens=1)[0].finish_reason == "length"


def test_a_trainer_that_computes_for_long_keeps_its_rollouts(worker):
    with Client(worker.endpoint) as client:  # heartbeats of 500 ms: silent for 1.5 s is dead
        rollout = client.submit(PROMPT, max_new_tokens=3, masked=True)
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            sum(range(10000))  # holds the interpreter's lock
        assert rollout.cancel()
        assert rollout.result(20)[0].finish_reason == "cancelled"


def test_a_closed_client_fails_what_was_in_flight(shared_worker):
    client = Client(shared_worker.endpoint)
    rollout = client.submit(PROMPT, max_new_tokens=3, masked=True)
    client.close()
    client.close()
    with pytest.raises(exact_rollout.CancelledError):
        rollout.result(20)
    with pytest.raises(exact_rollout.CancelledError):
        client.submit(PROMPT)
    with pytest.raises(exact_rollout.CancelledError):
        client.status()


def test_a_dead_worker_fails_rollouts_and_says_so(model):
    worker = exact_rollout.Worker(model, backend="cpu", arguments=["--heartbeat-ms", "100"])
    client = Client(worker.endpoint, timeout=1.0)
    rollout = client.submit(PROMPT, max_new_tokens=3, masked=True)
    worker.kill()
    with pytest.raises(ConnectionError):
        rollout.result(30)
    client.close()


def test_differing_counts_bits_and_refuses_other_shapes():
    a = np.array([0.0, 1.0, np.nan], np.float32)
    assert differing(a, a) == 0 and differing(a, np.array([-0.0, 1.0, np.nan], np.float32)) == 1
    with pytest.raises(ValueError):
        differing(a, a[:2])
    with pytest.raises(ValueError):
        differing(a, a.astype(np.float64))
