"""Where the program `rollout` is: the wheel's own, or one on PATH."""
from __future__ import annotations

import os
import pathlib
import shutil
import sys

from .errors import NotFoundError


def find_program() -> str:
    """EXACT_ROLLOUT_PROGRAM, else the one in the wheel, else `rollout` on PATH."""
    named = os.environ.get("EXACT_ROLLOUT_PROGRAM")
    if named:
        return named
    shipped = pathlib.Path(__file__).parent / "bin" / "rollout"
    if shipped.is_file():
        return str(shipped)
    found = shutil.which("rollout")
    if found is None:
        raise NotFoundError("the program `rollout` is neither in this package nor on PATH: install the wheel, or set "
                            "EXACT_ROLLOUT_PROGRAM")
    return found


def main() -> None:
    """The command `rollout` of an environment that has the wheel."""
    shipped = pathlib.Path(__file__).parent / "bin" / "rollout"
    os.execv(shipped, [str(shipped), *sys.argv[1:]])
