"""A worker that Python starts: ready, drained, killed, and gone with its trainer."""
import os
import signal
import subprocess
import sys
import time

import pytest

import exact_rollout


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


def test_a_worker_drains_and_leaves_nothing_behind(model):
    worker = exact_rollout.Worker(model, backend="cpu")
    folder = worker.endpoint.removeprefix("ipc://").rsplit("/", 1)[0]
    assert os.stat(folder).st_mode & 0o077 == 0
    assert "contract id" in worker.description and worker.poll() is None
    assert worker.close() == 0 and worker.close() == 0
    assert not os.path.exists(folder)


def test_a_worker_that_cannot_start_says_why(tmp_path):
    with pytest.raises(exact_rollout.PeerLostError, match="config.json"):
        exact_rollout.Worker(tmp_path)


def test_a_worker_ends_with_a_trainer_that_was_killed(model):
    script = ("import exact_rollout, sys, time\n"
              f"w = exact_rollout.Worker({str(model)!r}, backend='cpu')\n"
              "print(w.pid, flush=True)\ntime.sleep(600)\n")
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as trainer:
        pid = int(trainer.stdout.readline())
        assert is_alive(pid)
        trainer.send_signal(signal.SIGKILL)
    wait_until_gone(pid)


def test_a_program_that_closes_nothing_ends_in_peace(model):
    script = ("import exact_rollout\n"
              f"w = exact_rollout.Worker({str(model)!r}, backend='cpu')\n"
              "c = exact_rollout.Client(w.endpoint)\n"
              "r = c.submit([1, 2, 3], max_new_tokens=3, masked=True)\n"
              "c.status()\nprint(w.pid)\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    wait_until_gone(int(done.stdout))


def test_a_fork_that_ends_takes_neither_client_nor_worker_with_it(model):
    script = ("import exact_rollout, os, sys\n"
              f"w = exact_rollout.Worker({str(model)!r}, backend='cpu')\n"
              "c = exact_rollout.Client(w.endpoint)\n"
              "r = c.submit([1, 2, 3], max_new_tokens=3, masked=True)\n"
              "child = os.fork()\n"
              "if child == 0: sys.exit(7)\n"
              "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
              "assert w.poll() is None and r.cancel()\n"
              "print(r.result(20)[0].finish_reason)\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "cancelled\n"), done.stderr


def test_the_program_named_by_the_environment_is_taken(monkeypatch):
    monkeypatch.setenv("EXACT_ROLLOUT_PROGRAM", "/bin/false")
    with pytest.raises(exact_rollout.PeerLostError, match="exit code 1"):
        exact_rollout.Worker("anything")


def test_the_command_rollout_is_installed():
    program = os.path.join(os.path.dirname(sys.executable), "rollout")
    if not os.path.exists(program):
        pytest.skip("the package is not installed as a wheel")
    done = subprocess.run([program, "version"], capture_output=True, text=True, check=True)
    assert exact_rollout.__version__ in done.stdout
