"""`dami live` in a process of its own, for as long as a sweep runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dami_router.errors import FailureError

__all__ = ["live_server"]

_START = "from dami_router.cli import main; main()"
_STOP_S = 30.0
_SHOWN = 2000


@contextmanager
def live_server(arguments: Sequence[str], log: Path) -> Iterator[str]:
    """Start `dami live` with these arguments at a free port, and yield its address; stop it at the end.

    `log` receives what the server says, which never includes queries. It ends with this process, even if that is
    killed. Raises FailureError with the server's last words if it does not start.
    """
    command = [sys.executable, "-c", _START, "live", *arguments, "--port", "0", "--json"]
    with log.open("wb") as said:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, preexec_fn=_end_with_parent)
        try:
            yield _address(server, log)
        finally:
            server.terminate()
            try:
                server.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            if server.stdout is not None:
                server.stdout.close()


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the server says where it is: one JSON object on stdout."""
    assert server.stdout is not None
    text = b""
    for line in server.stdout:
        text += line
        try:
            return str(json.loads(text)["address"])
        except (ValueError, KeyError):
            continue
    code = server.wait()
    last = log.read_text(encoding="utf-8", errors="replace")[-_SHOWN:].strip()
    raise FailureError(f"dami live did not start (exit code {code}):\n{last}", hint=f"its whole output is in {log}")


def _end_with_parent() -> None:
    """Ask Linux to end this process with its parent; elsewhere, nothing."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
