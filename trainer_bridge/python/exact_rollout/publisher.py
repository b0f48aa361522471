"""Pushing a trainer's weights into a worker."""
from __future__ import annotations

import concurrent.futures
from typing import Iterable, Mapping

from . import _core
from .client import connect
from .errors import CancelledError, InvalidError
from .tensors import named_arrays

POLICIES = {"wait": 0, "recompute": 1, "abort": 2}


class Publisher:
    """A connection of its own for weights. An update is atomic: after any error the worker serves the old version.

        with Publisher(worker.endpoint) as publisher:
            report = publisher.push(model.named_parameters(), version=step)
    """

    def __init__(self, endpoint: str | None = None, *, name: str = "python publisher", contract_id: str = "",
                 timeout: float = 600.0, connect_timeout: float = 10.0):
        self._calls = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="exact-rollout-push")
        self._closed = False
        try:
            self._core = self._call(connect, endpoint, name, contract_id, timeout, connect_timeout, 256 << 20)
        except BaseException:
            self._calls.shutdown(wait=False)
            raise

    def push(self, tensors: Mapping | Iterable[tuple], version: int | None = None, *, policy: str = "recompute",
             bucket_bytes: int = 64 << 20) -> _core.PublishReport:
        """Every tensor of the model, by its Hugging Face name, as version `version` (default: the next one).

        policy, for requests that are running: "wait" (they finish on the old weights), "recompute" (they go on with
        the new ones over a rebuilt cache) or "abort". Tensors in host memory are read where they lie: don't change
        them until this returns. Interrupted, it goes on behind the caller, and the next call waits for it.
        """
        if policy not in POLICIES:
            raise InvalidError(f"policy must be one of {', '.join(POLICIES)}: not {policy!r}")
        return self._call(self._push_here, named_arrays(tensors), version, POLICIES[policy], bucket_bytes)

    def live_version(self) -> int:
        return self._call(lambda: self._core.status().weight_version)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._core.close()
            self._calls.shutdown(wait=False)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _call(self, function, *arguments):
        if self._closed:
            raise CancelledError("this publisher is closed: make another one")
        return self._calls.submit(function, *arguments).result()

    def _push_here(self, arrays, version, policy, bucket_bytes):
        if version is None:
            version = self._core.status().weight_version + 1
        return _core.publish(self._core, arrays, version, policy, bucket_bytes)
