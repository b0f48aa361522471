"""The example that learns, as a user starts it: KL exactly zero, no bit different, and a reward that rises."""
import pathlib
import re
import subprocess
import sys

import pytest

from conftest import TINY

pytest.importorskip("torch")

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "grpo.py"


def test_grpo_on_a_cpu_learns_with_no_bit_different():
    done = subprocess.run([sys.executable, EXAMPLE, "--config", TINY, "--device", "cpu", "--steps", "18"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = re.findall(r"reward ([\d.]+)  KL (\S+)  clipped (\S+)  differ (\d+) of (\d+)", done.stdout)
    assert len(steps) == 18
    assert all((kl, clipped, differ, tokens) == ("0.0", "0.0", "0", "1024") for _, kl, clipped, differ, tokens in steps)
    assert done.stdout.splitlines()[-1] == "18 steps, 18432 log-probabilities compared with the trainer's: 0 differ."
    # A quarter of the ids are rewarded at the start.
    assert float(steps[0][0]) < 0.3 and float(steps[-1][0]) > 0.5, done.stdout
