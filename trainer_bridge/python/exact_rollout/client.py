"""A connection to a worker, for any number of threads and for asyncio."""
from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterable, Iterator

import numpy as np

from . import _core
from .errors import CancelledError, ExactError
from .ids import as_ids
from .request import RolloutParameters, make_request
from .rollout import Group, Rollout

if TYPE_CHECKING:
    from typing_extensions import Unpack

_open_clients: weakref.WeakSet[Client] = weakref.WeakSet()


@dataclass(frozen=True)
class Score:
    """Log-probabilities of each token of a text after its first, and the weights they are of."""

    logprobs: np.ndarray  # fp32, tokens - 1
    contract_id: str
    weight_version: int
    weights_digest: str


def connect(endpoint: str | None, name: str, contract_id: str, timeout: float, connect_timeout: float,
            max_message_bytes: int) -> _core.Client:
    return _core.Client.connect(endpoint or _core.default_endpoint(), name, contract_id, round(1000 * timeout),
                                round(1000 * connect_timeout), max_message_bytes)


class _Router:
    """Which rollout an event belongs to. Its thread holds this and not the client, which so can be forgotten."""

    def __init__(self, core: _core.Client):
        self.core = core
        self.lock = threading.Lock()
        self.rollouts: dict[int, Rollout] = {}

    def run(self) -> None:
        error: ExactError = CancelledError("the client was closed")
        try:
            while True:
                event = self.core.next_event(1000)
                if event is None:
                    continue
                request_id, is_last, what = event
                with self.lock:  # a submit() that is on its way has told its rollout before
                    rollout = self.rollouts.pop(request_id, None) if is_last else self.rollouts.get(request_id)
                if rollout is not None:
                    rollout._take(is_last, what)
        except CancelledError:
            pass
        except ExactError as failure:  # of the connection itself
            error = failure
        except Exception as failure:  # a bug, or no memory: nobody may wait for ever because of it
            error = ExactError(f"the client's thread ended: {failure!r}")
        self.core.close()
        with self.lock:
            left, self.rollouts = list(self.rollouts.values()), {}
        for rollout in left:
            rollout._fail(error)


class Client:
    """Connects when it is made; raises TimedOutError when no worker answers, ContractMismatchError when its contract
    is not `contract_id`. Close it, or use it in `with` or `async with`.

    timeout: seconds for the worker's answer to a call; rollouts have no limit but their own `deadline_ms`.
    A thread of the client's own reads the connection and sends heartbeats, however long the trainer computes.
    """

    def __init__(self, endpoint: str | None = None, *, name: str = "python", contract_id: str = "",
                 timeout: float = 30.0, connect_timeout: float = 10.0, max_message_bytes: int = 256 << 20):
        self._calls = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="exact-rollout-call")
        self._closed = False
        self._owner = os.getpid()
        self._how = (endpoint, name, contract_id, timeout, connect_timeout, max_message_bytes)
        self._second: _core.Client | None = None
        try:
            self._core = self._call(connect, *self._how)
        except BaseException:
            self._calls.shutdown(wait=False)
            raise
        self._router = _Router(self._core)
        self._reader = threading.Thread(target=self._router.run, name="exact-rollout-client", daemon=True)
        self._reader.start()
        _open_clients.add(self)

    # ---- rollouts
    def submit(self, prompt, **parameters: Unpack[RolloutParameters]) -> Rollout:
        """Sends a request and returns at once. `prompt`: ids. ExhaustedError: `worker.max_requests` are in flight."""
        request = make_request(prompt, parameters)
        with self._router.lock:
            rollout = Rollout(self, self._core.submit(request))
            self._router.rollouts[rollout.request_id] = rollout
        return rollout

    def generate(self, prompt, **parameters: Unpack[RolloutParameters]) -> Group:
        """One prompt, its samples. KeyboardInterrupt and its like cancel it."""
        rollout = self.submit(prompt, **parameters)
        try:
            return rollout.result()
        except ExactError:
            raise
        except BaseException:
            rollout.cancel()
            raise

    async def generate_async(self, prompt, **parameters: Unpack[RolloutParameters]) -> Group:
        """The same in asyncio: a task that is cancelled cancels it."""
        rollout = self.submit(prompt, **parameters)
        try:
            return await rollout
        except asyncio.CancelledError:
            self._calls.submit(rollout.cancel)
            raise

    def generate_many(self, requests: Iterable[tuple], **parameters: Unpack[RolloutParameters]) -> Iterator[Group]:
        """Groups in the order of `requests`, each a pair (prompt, parameters of its own), as many in flight as the
        worker takes. An error ends the iteration; what is in flight then is cancelled."""
        limit = max(1, self.worker.max_requests - 1)
        flight: list[Rollout] = []
        try:
            for prompt, own in requests:
                if len(flight) >= limit:
                    yield flight.pop(0).result()
                flight.append(self.submit(prompt, **{**parameters, **own}))
            while flight:
                yield flight.pop(0).result()
        finally:
            for rollout in flight:
                if not self._closed:
                    rollout.cancel()

    # ---- questions
    @property
    def worker(self) -> _core.WorkerInfo:
        return self._core.worker()

    def score(self, tokens) -> Score:
        """The worker's log-probabilities of a text's tokens: its forward pass, under its live weights."""
        return Score(*self._ask("score", as_ids(tokens)))

    async def score_async(self, tokens) -> Score:
        ids = as_ids(tokens)
        return Score(*await asyncio.wrap_future(self._calls.submit(self._ask_here, "score", ids)))

    def status(self) -> _core.WorkerStatus:
        return self._ask("status")

    def ping(self) -> int:
        """Steps that the worker has taken: it grows while it works."""
        return self._ask("ping")

    # ---- the end
    def close(self) -> None:
        """Rollouts in flight end with CancelledError here; the worker drops them after three heartbeats."""
        if self._closed:
            return
        self._closed = True
        if os.getpid() != self._owner:
            return  # a fork: the connection is its parent's, and so is the thread that holds it
        self._core.close()
        if self._second is not None:
            self._second.close()
        self._calls.shutdown(wait=False)
        if threading.current_thread() is not self._reader:
            self._reader.join()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and hasattr(self, "_reader") and os.getpid() == self._owner:
            self._core.close()

    def _call(self, function, *arguments):
        """In another thread, so that this one can be interrupted while it waits."""
        return self._calls.submit(function, *arguments).result()

    def _ask(self, name: str, *arguments):
        if self._closed:
            raise CancelledError("this client is closed: connect another one")
        return self._call(self._ask_here, name, *arguments)

    def _ask_here(self, name: str, *arguments):
        # A connection of its own: a question that waits holds up no rollout's events.
        if self._second is None:
            self._second = connect(*self._how)
        return getattr(self._second, name)(*arguments)

    def _cancel(self, request_id: int) -> bool:
        return self._core.cancel(request_id)

    def _allow(self, request_id: int, sample_index: int, index: int, ids) -> None:
        self._core.allow(request_id, sample_index, index, as_ids(ids, "ids"))


@atexit.register
def _close_all() -> None:
    for client in list(_open_clients):
        client.close()
