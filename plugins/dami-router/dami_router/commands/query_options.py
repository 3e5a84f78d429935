"""What `dami ask` and `dami route` are both told of a query."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["query_options"]

_F = TypeVar("_F", bound=Callable[..., Any])
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.argument("config", type=click.Path(path_type=Path)),
    click.argument("query"),
    click.option(
        "--effort", type=click.Choice(["none", "minimal", "low", "medium", "high"]), help="The reasoning effort."
    ),
    click.option("--model", default="dami", show_default=True, help="dami, dami:0.5 for one λ, or a variant's id."),
)


def query_options(function: _F) -> _F:
    """Give a command `config`, `query`, `effort` and `model`, in this order."""
    return reduce(lambda decorated, option: option(decorated), reversed(_OPTIONS), function)
