"""The exceptions: one a code of the worker's, each with the worker's sentence."""
from __future__ import annotations


class ExactError(Exception):
    """Something was refused or failed. `code` is the worker's word for it, `message` its sentence."""

    code = "unknown"

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message


class InvalidError(ExactError, ValueError):
    """The caller's input is wrong: change it."""

    code = "invalid"


class UnsupportedError(ExactError):
    """Well formed, but the contract can't be kept for it."""

    code = "unsupported"


class NotFoundError(ExactError, LookupError):
    """A file, tensor or request that is not there."""

    code = "not_found"


class ExhaustedError(ExactError):
    """A limit is reached: try again later, or raise it."""

    code = "exhausted"


class TimedOutError(ExactError, TimeoutError):
    """A peer or a deadline."""

    code = "timeout"


class PeerLostError(ExactError, ConnectionError):
    """The other side is gone."""

    code = "peer_lost"


class CorruptError(ExactError):
    """A digest, checksum or format is wrong."""

    code = "corrupt"


class ContractMismatchError(ExactError):
    """The two sides run different numerics, configs or versions."""

    code = "contract_mismatch"


class CancelledError(ExactError):
    """Asked for by the client."""

    code = "cancelled"


class DeviceError(ExactError, OSError):
    """The operating system, driver or hardware refused."""

    code = "device"


_BY_CODE = {kind.code: kind for kind in ExactError.__subclasses__()}


def make_error(code: str, message: str) -> ExactError:
    """The exception of a code; an ExactError for one that this release does not know."""
    return _BY_CODE.get(code, ExactError)(message)
