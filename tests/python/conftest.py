"""A small model and a worker that the tests of the Python package share."""
import json
import pathlib
import subprocess

import numpy as np
import pytest

import exact_rollout
from exact_rollout.program import find_program

TINY = pathlib.Path(__file__).parents[2] / "examples" / "models" / "tiny.json"


def make_model(folder: pathlib.Path, seed: int, **changes) -> pathlib.Path:
    folder.mkdir(parents=True)
    (folder / "asked.json").write_text(json.dumps({**json.loads(TINY.read_text()), **changes}))
    subprocess.run([find_program(), "make-model", "--config", folder / "asked.json", "--seed", str(seed), "--out",
                    folder / "model"], check=True, capture_output=True)
    return folder / "model"


def read_tensors(model: pathlib.Path) -> dict[str, np.ndarray]:
    """The bf16 bits of a small safetensors file, as uint16."""
    data = (model / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[begin:end], np.uint16).reshape(entry["shape"]).copy()
    return tensors


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "first", seed=1)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory):
    """Of the same config, with other weights."""
    return make_model(tmp_path_factory.mktemp("model") / "other", seed=2)


@pytest.fixture(scope="session")
def shared_worker(model):
    with exact_rollout.Worker(model, backend="cpu") as worker:
        yield worker


@pytest.fixture
def worker(model):
    """One that the test may change: its weights, its life."""
    with exact_rollout.Worker(model, backend="cpu", arguments=["--heartbeat-ms", "500"]) as one:
        yield one


@pytest.fixture
def client(shared_worker):
    with exact_rollout.Client(shared_worker.endpoint) as one:
        yield one
