"""Several transfers at a time, which an impatient user can leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from dami_router.errors import DamiError
from dami_router.manifest.hub_errors import told

__all__ = ["everywhere", "guarded", "pool"]

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def pool(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Run at most `jobs` calls at once; after a failure no call is started, and an interrupt waits for none.

    The caller that catches the interrupt must end the process: its threads may still be sending.
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


def everywhere(jobs: int, items: Sequence[Item], do: Callable[[Item], Result]) -> dict[Item, Result]:
    """Call `do` with each item, `jobs` at a time; errors are told about `str(item)`."""
    with pool(jobs) as workers:
        running = [workers.submit(guarded, str(item), do, item) for item in items]
        return {item: job.result() for item, job in zip(items, running, strict=True)}


def guarded(where: str, do: Callable[..., Result], *arguments: Any) -> Result:
    """Call `do`; an exception of huggingface_hub becomes one message about `where`."""
    try:
        return do(*arguments)
    except DamiError:
        raise
    except Exception as error:
        raise told(error, where, resumes=True) from None
