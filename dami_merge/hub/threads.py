"""Several transfers at a time, which an impatient user can leave."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

__all__ = ["pool"]


@contextmanager
def pool(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Run at most `jobs` calls at once; after a failure none is begun, and an interrupt waits for none.

    Whoever catches the interrupt ends the process: its threads may still be sending.
    """
    executor = ThreadPoolExecutor(jobs)
    try:
        yield executor
    except KeyboardInterrupt:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    except BaseException:
        executor.shutdown(wait=True, cancel_futures=True)
        raise
    executor.shutdown()
