"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from dami_router.errors import MisuseError
from dami_router.messages.hints import EFFORT_WORDS

if TYPE_CHECKING:
    from dami_router.proxy.page_data import PageData

__all__ = [
    "asking_options", "dataset_options", "given_options", "numbers", "page_data", "page_options", "query_options",
    "training_options", "whole_numbers",
]  # fmt: skip

_F = TypeVar("_F", bound=Callable[..., Any])
_Option = Callable[[Any], Any]

_QUERY: tuple[_Option, ...] = (
    click.argument("config", type=click.Path(path_type=Path)),
    click.argument("query"),
    click.option("--effort", type=click.Choice(EFFORT_WORDS), help="The reasoning effort."),
    click.option("--model", default="dami", show_default=True, help="dami, dami:0.5 for one λ, or a variant's id."),
)
_DATASET: tuple[_Option, ...] = (
    click.option("--config", help="The configuration of a Hub dataset."),
    click.option("--split", help="The split of a Hub dataset."),
    click.option("--query-column", help="Column of the queries. Default: found by its usual names."),
    click.option("--limit", type=click.IntRange(min=1), help="Read only the first rows."),
)
_ASKING: tuple[_Option, ...] = (
    click.option("--template", default="{query}", help="The prompt; {query} stands for the query."),
    click.option("--system", help="A system message."),
    click.option("--max-tokens", type=click.IntRange(min=1), help="Limit of an answer in tokens, thoughts included."),
    click.option("--temperature", type=click.FloatRange(0, 5), default=0.0, show_default=True, help="0 is greedy."),
)
_PAGE: tuple[_Option, ...] = (
    click.option(
        "--report", "reports", multiple=True, type=click.Path(path_type=Path),
        help="A report of `dami eval`, `dami sweep` or `dami demo`, for the frontier on the page. Repeatable.",
    ),
    click.option("--no-ui", is_flag=True, help="Do not answer /ui, the page for a browser."),
)  # fmt: skip
_TRAINING: tuple[_Option, ...] = (
    click.option(
        "--method", type=click.Choice(["preference", "neighbours"]), default="preference", show_default=True,
        help="Learn a linear function from preferences between answers, or average over the most similar queries.",
    ),
    click.option(
        "--price", type=float, default=0.05, show_default=True,
        help="Accuracy (0 to 1) that a mean answer of the most expensive variant must gain; larger values choose "
        "cheaper variants.",
    ),
    click.option(
        "--budget", type=float,
        help="Instead of --price: at most this fraction (0 to 1) of the most expensive variant's mean tokens, the "
        "probe for the confidence included.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of the split into folds."),
    click.option(
        "--confidence", type=click.Path(path_type=Path),
        help="JSON object from query_id to Instruct's confidence, as `dami calibrate --confidence` writes it.",
    ),
    click.option(
        "--probe-tokens", type=click.FloatRange(min=0),
        help="Tokens that each confidence took, where the files do not say. Default: 16, the longest probe.",
    ),
    click.option(
        "--embeddings", metavar="MODEL",
        help="Use a model's embeddings instead of words: a local folder, or a name served at $DAMI_EMBEDDINGS_URL.",
    ),
    click.option(
        "--hidden", metavar="ROUTER.yml", type=click.Path(path_type=Path),
        help="Use Instruct's hidden state of the query instead of words, read from a live server of this router.yml.",
    ),
    click.option("--lambdas", help="Use these λ alone, such as 0,0.5: those that will be served. Default: all."),
    click.option("--drop-incomplete", is_flag=True, help="Skip queries that some variant did not answer."),
)  # fmt: skip


def query_options(function: _F) -> _F:
    """Add `config`, `query`, `effort` and `model`, in this order, for `dami ask` and `dami route`."""
    return _with(_QUERY, function)


def dataset_options(function: _F) -> _F:
    """Add `config`, `split`, `query_column` and `limit`, for `dami rollout` and `dami calibrate`."""
    return _with(_DATASET, function)


def asking_options(function: _F) -> _F:
    """Add `template`, `system`, `max_tokens` and `temperature`, for `dami rollout` and `dami sweep`."""
    return _with(_ASKING, function)


def page_options(function: _F) -> _F:
    """Add `reports` and `no_ui`, for `dami serve` and `dami live`."""
    return _with(_PAGE, function)


def page_data(reports: Sequence[Path], no_ui: bool) -> PageData | None:
    """Return what the page shows, None where it is off; raises MisuseError for a report that cannot be read."""
    from dami_router.evaluating.frontier_file import load_frontier
    from dami_router.proxy.page_data import PageData

    if no_ui and reports:
        raise MisuseError("--report is for the page, which --no-ui turns off", hint="leave one of the two out")
    return None if no_ui else PageData([load_frontier(path) for path in reports])


def given_options() -> list[click.Option]:
    """Return the options of the running command that stand in its command line."""
    context = click.get_current_context()
    return [
        parameter
        for parameter in context.command.params
        if isinstance(parameter, click.Option)
        and context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]


def numbers(text: str | None, option: str) -> list[float]:
    """Return the numbers of an option such as `0,0.25,0.5`; raises MisuseError."""
    try:
        return [float(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        raise MisuseError(f"{option}: {text!r:.60}: expected numbers such as 0,0.25,0.5") from None


def whole_numbers(text: str | None, option: str) -> list[int]:
    """Return the whole numbers from 0 of an option such as `256,1024`; raises MisuseError."""
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise MisuseError(f"{option}: {text!r:.60}: expected whole numbers such as 256,1024")
    return [int(part) for part in parts]


def training_options(function: _F) -> _F:
    """Add the settings that `dami train` and the cross-validation of `dami eval` share.

    They are `method`, `price`, `budget`, `seed`, `confidence`, `probe_tokens`, `embeddings`, `hidden`, `lambdas`
    and `drop_incomplete`.
    """
    return _with(_TRAINING, function)


def _with(options: tuple[_Option, ...], function: _F) -> _F:
    return reduce(lambda decorated, option: option(decorated), reversed(options), function)
