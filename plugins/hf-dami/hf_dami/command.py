"""`hf-dami`, the executable that `hf dami …` runs: forwards everything to the installed `dami`.

`hf extensions install` puts this into an environment of its own, without torch and mergekit; the `dami`
beside it, or else the first on PATH, has them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

__all__ = ["dami", "main"]

MISSING = """\
error: `hf dami` runs the command `dami`, which is not installed here
  hint: install dami-merge where your shell finds `dami`, or in the environment of hf-dami; dami-router alone has
  serve, route, ask, train and eval
"""


def dami() -> str | None:
    """Return the path of `dami`: from our own environment, else from PATH; None if there is none."""
    return shutil.which("dami", path=sysconfig.get_path("scripts")) or shutil.which("dami")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `dami` under the name `hf dami`, with the same output and exit code; exit with 1 if it is missing."""
    found = dami()
    if found is None:
        sys.stderr.write(MISSING)
        sys.exit(1)
    command = [found, *(sys.argv[1:] if arguments is None else arguments)]
    environment = {**os.environ, "DAMI_PROGRAM": "hf dami"}
    if os.name == "nt":  # where exec would return to the shell before the command has ended
        sys.exit(subprocess.call(command, env=environment))
    os.execve(Path(found), command, environment)  # noqa: S606
