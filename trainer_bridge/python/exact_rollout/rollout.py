"""A rollout in flight: its result, its events as they come, for threads and for asyncio."""
from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import AsyncIterator, Callable, Iterator, Union

from ._core import Completion, MaskWanted, TokenChunk
from .errors import ExactError, TimedOutError


@dataclass(frozen=True)
class Group:
    """What came of one prompt: its samples, by their index."""

    contract_id: str
    seed: int
    completions: list[Completion]

    def __iter__(self) -> Iterator[Completion]:
        return iter(self.completions)

    def __len__(self) -> int:
        return len(self.completions)

    def __getitem__(self, index: int) -> Completion:
        return self.completions[index]


@dataclass(frozen=True)
class MaskRefused:
    """The ids of an allow() were not taken; the sample still waits, unless it has ended."""

    sample_index: int
    index: int
    error: ExactError


# A Completion is a sample that is done.
Event = Union[TokenChunk, Completion, MaskWanted, MaskRefused]


class Rollout:
    """Made by Client.submit(). Any thread may wait for it.

    `result()` or `await rollout` give the Group at the end, whatever the stream; `for event in rollout` and `async for`
    give its events, each once.
    """

    def __init__(self, client, request_id: int):
        self.request_id = request_id
        self._client = client
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._completions: dict[int, Completion] = {}
        self._group: Group | None = None
        self._error: ExactError | None = None
        self._wakers: list[Callable[[], None]] = []  # called once, at the next change

    # ---- of a caller
    def done(self) -> bool:
        with self._changed:
            return self._is_over()

    def result(self, timeout: float | None = None) -> Group:
        """Waits for the whole group. Raises the rollout's error, or TimedOutError; then it is still in flight."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._is_over():
                self._wait(deadline)
            return self._outcome()

    def cancel(self) -> bool:
        """Ends it with what it has, which result() then gives. False: it had ended already."""
        return False if self.done() else self._client._cancel(self.request_id)

    def allow(self, sample_index: int, index: int, ids) -> None:
        """Answers a MaskWanted: the ids, ascending, that token `index` may be."""
        self._client._allow(self.request_id, sample_index, index, ids)

    def __iter__(self) -> Iterator[Event]:
        while True:
            with self._changed:
                while not self._events and not self._is_over():
                    self._wait(None)
                if not self._events:
                    self._outcome()
                    return
                event = self._events.popleft()
            yield event

    def __await__(self):
        return self._await_result().__await__()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            await self._until(lambda: bool(self._events) or self._is_over())
            with self._changed:
                if not self._events:
                    self._outcome()
                    return
                event = self._events.popleft()
            yield event

    async def _await_result(self) -> Group:
        await self._until(self._is_over)
        with self._changed:
            return self._outcome()

    async def _until(self, condition: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                if condition():
                    return
                woken = loop.create_future()

                def wake(woken=woken):
                    loop.call_soon_threadsafe(lambda: woken.done() or woken.set_result(None))

                self._wakers.append(wake)
            await woken

    def _wait(self, deadline: float | None) -> None:
        # A wait without an end would not see KeyboardInterrupt on every platform.
        left = 3600.0 if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise TimedOutError(f"request {self.request_id} was not done in time: wait on, or cancel it")
        self._changed.wait(min(left, 3600.0))

    def _is_over(self) -> bool:
        return self._group is not None or self._error is not None

    def _outcome(self) -> Group:
        if self._error is not None:
            raise self._error
        assert self._group is not None
        return self._group

    # ---- of the thread that reads the connection
    def _take(self, is_last: bool, what) -> None:
        with self._changed:
            if not is_last:
                if isinstance(what, Completion):
                    self._completions[what.sample_index] = what
                self._events.append(MaskRefused(*what) if isinstance(what, tuple) else what)
            elif isinstance(what, ExactError):
                self._error = what
            else:
                contract_id, seed, completions = what
                for completion in completions:
                    self._completions[completion.sample_index] = completion
                    self._events.append(completion)
                self._group = Group(contract_id, seed, [c for _, c in sorted(self._completions.items())])
            self._wake()

    def _fail(self, error: ExactError) -> None:
        with self._changed:
            if not self._is_over():
                self._error = error
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        wakers, self._wakers = self._wakers, []
        for wake in wakers:
            try:
                wake()
            except RuntimeError:  # its event loop is closed: nobody waits there any more
                pass
