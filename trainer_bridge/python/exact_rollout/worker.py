"""A worker on this machine, started and ended by the trainer."""
from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from typing import IO, Iterable

from .errors import PeerLostError, TimedOutError
from .program import find_program


class Worker:
    """Starts `rollout serve`, and returns when clients may connect. Close it, or use it in `with`: it then finishes
    what runs and ends. It also ends when this process does, however that ends.

    endpoint: default a socket in a directory of this worker's own. arguments: more options of `rollout serve`.
    log: where its standard error goes; default a file that `log_text()` reads.
    """

    def __init__(self, model: str | os.PathLike, *, endpoint: str | None = None, backend: str = "auto",
                 arguments: Iterable[str] = (), start_timeout: float = 600.0, log: IO | None = None):
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="exact-rollout-"))
        self.endpoint = endpoint or f"ipc://{self._folder}/worker.sock"
        self._log_path = self._folder / "log"
        self._lines: list[str] = []
        self._ready = threading.Event()  # or it has ended
        command = [find_program(), "serve", "--model", os.fspath(model), "--bind", self.endpoint, "--backend", backend,
                   "--until-input-ends", *arguments]
        with open(self._log_path, "wb") as own_log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=log or own_log, text=True,
                                             start_new_session=True)  # Ctrl-C is the trainer's to handle
        self._owner = os.getpid()
        self._reader = threading.Thread(target=self._read, name="exact-rollout-worker", daemon=True)
        self._reader.start()
        try:
            self._wait_until_ready(start_timeout)
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def description(self) -> str:
        """What it said of its model, backend and limits when it was ready."""
        return "\n".join(line for line in self._lines if line != "ready")

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def log_text(self) -> str:
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    def close(self, timeout: float = 60.0) -> int:
        """Drains it (running requests are finished and answered), waits, and returns its exit code. Past `timeout` it
        is killed."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._end()

    def kill(self) -> int:
        """At once; what it serves is lost."""
        if self._process.poll() is None:
            self._process.kill()
        return self._end()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_owner") and self._process.returncode is None and os.getpid() == self._owner:
            self.kill()

    def _end(self) -> int:
        code = self._process.wait()
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        self._reader.join()
        shutil.rmtree(self._folder, ignore_errors=True)
        return code

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.append(line.rstrip("\n"))
                if line == "ready\n":
                    self._ready.set()
        self._ready.set()

    def _wait_until_ready(self, timeout: float) -> None:
        begin = time.monotonic()
        if not self._ready.wait(timeout):
            raise TimedOutError(f"the worker was not ready within {timeout:g} s; its log ends:\n{self._log_tail()}")
        if "ready" not in self._lines:
            code = self._process.wait()
            raise PeerLostError(f"the worker ended with exit code {code} after {time.monotonic() - begin:.1f} s, before "
                                f"it was ready; its log ends:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return "\n".join(self.log_text().splitlines()[-10:])
