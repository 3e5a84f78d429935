"""A process that forks builds on demand, so that they can be killed by the dozen at the price of one import.

Run as a script. Each line on stdin is a JSON object: `recipe` and `out`; `kill_at` (the child
kills itself with SIGKILL at that call of a file system operation, counted from 1), `file_limit`
(RLIMIT_FSIZE) or `lie_about_space`. Answers on stdout: the child's pid, then its exit status.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

OPERATIONS = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "link", "pwrite", "open")


def main() -> None:
    """Serve until stdin ends."""
    import torch

    import dami_merge.build.building  # imported once, before the forks
    import dami_merge.recipes.explanation  # noqa: F401

    torch.set_num_threads(1)
    _say("ready")
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_build(order))
        _say(child)
        _, status = os.waitpid(child, 0)
        _say(status)


def _say(value: object) -> None:
    sys.stdout.write(f"{value}\n")
    sys.stdout.flush()


def _build(order: dict[str, Any]) -> int:
    from dami_merge.build import Options, build_family, building
    from dami_merge.recipes.recipe import load_recipe
    from dami_router.errors import DamiError

    if limit := order.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if order.get("lie_about_space"):
        building.free_bytes = lambda path: 1 << 60
    if order.get("kill_at"):
        _arm(order["kill_at"])
    try:
        build_family(load_recipe(Path(order["recipe"])), Path(order["out"]), Options(**order.get("options", {})))
    except DamiError as error:
        Path(order["log"]).write_text(str(error))
        return error.exit_code
    return 0


def _arm(at: int) -> None:
    left = [at]

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(os, name, counted)

    for name in OPERATIONS:
        wrap(name)


if __name__ == "__main__":
    main()
