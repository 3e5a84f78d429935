"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["dataset_options", "query_options"]

_F = TypeVar("_F", bound=Callable[..., Any])
_Option = Callable[[Any], Any]

_QUERY: tuple[_Option, ...] = (
    click.argument("config", type=click.Path(path_type=Path)),
    click.argument("query"),
    click.option(
        "--effort", type=click.Choice(["none", "minimal", "low", "medium", "high"]), help="The reasoning effort."
    ),
    click.option("--model", default="dami", show_default=True, help="dami, dami:0.5 for one λ, or a variant's id."),
)
_DATASET: tuple[_Option, ...] = (
    click.option("--config", help="The configuration of a Hub dataset."),
    click.option("--split", help="The split of a Hub dataset."),
    click.option("--query-column", help="Column of the queries. Default: found by its usual names."),
    click.option("--limit", type=click.IntRange(min=1), help="Read only the first rows."),
)


def query_options(function: _F) -> _F:
    """Add `config`, `query`, `effort` and `model`, in this order, for `dami ask` and `dami route`."""
    return _with(_QUERY, function)


def dataset_options(function: _F) -> _F:
    """Add `config`, `split`, `query_column` and `limit`, for `dami rollout` and `dami calibrate`."""
    return _with(_DATASET, function)


def _with(options: tuple[_Option, ...], function: _F) -> _F:
    return reduce(lambda decorated, option: option(decorated), reversed(options), function)
