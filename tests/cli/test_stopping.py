"""An interrupt of a transfer is answered at once, whatever the main thread does."""

from __future__ import annotations

import signal
import subprocess
import sys

SCRIPT = """
import signal, sys, threading
from dami_merge.commands.stopping import stoppable
from dami_router.output import Output

with stoppable(Output()):
    pass
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, threading.active_count(), flush=True)
with stoppable(Output()):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # another thread gets it: the main thread is not woken
    print("waiting", flush=True)
    threading.Event().wait()
"""


def test_a_signal_that_does_not_wake_the_main_thread_is_answered() -> None:
    """The process ends with 130 and one line while its main thread waits; before and after, nothing is changed."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in range(2)] == ["True 1", "waiting"]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, err) == (130, "stopped; the same command goes on\n")
