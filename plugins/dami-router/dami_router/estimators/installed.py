"""Estimators by name: the folder of a trained one, or one that another distribution provides.

A distribution provides an estimator through the entry-point group `dami.estimators`: a name, and a
callable that takes options as keyword arguments and returns an `Estimator`. docs/estimators.md has a
complete example.
"""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from dami_router.errors import FailureError, MisuseError
from dami_router.estimators.estimator import Estimator
from dami_router.shared.suggestions import did_you_mean, listed

__all__ = ["GROUP", "installed", "named"]

GROUP = "dami.estimators"


def installed() -> list[str]:
    """Return the names of the estimators that other distributions provide."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def named(place: str, *, asks: Estimator | None = None, **options: Any) -> Estimator:
    """Return the estimator in a folder, or the installed one of this name.

    `asks` provides the evidence of a trained estimator; `options` are for an installed one. Raises MisuseError if
    `place` is neither, FailureError if the estimator cannot be created.
    """
    point = next((point for point in entry_points(group=GROUP) if point.name == place), None)
    if point is None:
        return _from_folder(place, asks)
    try:
        made = point.load()(**options)
    except Exception as error:
        # Third-party code may raise anything; the user needs its name and its message.
        raise FailureError(f"estimator `{place}` cannot be created: {type(error).__name__}: {error}") from error
    if not isinstance(made, Estimator):
        raise FailureError(f"`{place}` is not an estimator: it needs `name` and `async estimate(query)`")
    return made


def _from_folder(place: str, asks: Estimator | None) -> Estimator:
    folder = Path(place)
    if not folder.exists():
        near = did_you_mean(place, installed())
        known = f"installed: {listed(installed())}" if installed() else "none is installed by name"
        raise MisuseError(
            f"no estimator `{place}`: {known}, and no such folder", hint=f"did you mean `{near}`?" if near else None
        )
    try:
        from dami_router.estimators.store import load
    except ImportError:
        raise FailureError(
            "trained estimators need numpy and safetensors", hint="pip install 'dami-router[eval]'"
        ) from None
    url, model = os.environ.get("DAMI_EMBEDDINGS_URL"), os.environ.get("DAMI_EMBEDDINGS_MODEL")
    return load(folder, asks=asks, embeddings_url=url, embeddings_model=model)
