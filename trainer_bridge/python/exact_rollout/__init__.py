"""Rollouts whose log-probabilities equal the trainer's own forward pass, bit for bit.

    Worker     starts and supervises a worker on this machine
    Client     submits rollouts to a worker, streams them, scores texts
    Publisher  pushes a trainer's weights into a worker
    Scorer     the trainer's forward pass on a CPU, in the same bits

`exact_rollout.torch` sets PyTorch up to compute those bits, and needs torch. Errors are ExactError and its subclasses,
one a code of the worker's.
"""
from ._core import Completion, MaskWanted, PublishReport, TokenChunk, VersionSpan, WorkerInfo, WorkerStatus
from .bits import differing
from .client import Client, Score
from .errors import (CancelledError, ContractMismatchError, CorruptError, DeviceError, ExactError, ExhaustedError,
                     InvalidError, NotFoundError, PeerLostError, TimedOutError, UnsupportedError)
from .publisher import Publisher
from .rollout import Group, MaskRefused, Rollout
from .scorer import Scorer
from .worker import Worker

__version__ = "0.1.0"
__all__ = [
    "CancelledError", "Client", "Completion", "ContractMismatchError", "CorruptError", "DeviceError", "ExactError",
    "ExhaustedError", "Group", "InvalidError", "MaskRefused", "MaskWanted", "NotFoundError", "PeerLostError",
    "PublishReport", "Publisher", "Rollout", "Score", "Scorer", "TimedOutError", "TokenChunk", "UnsupportedError",
    "VersionSpan", "Worker", "WorkerInfo", "WorkerStatus", "differing",
]
