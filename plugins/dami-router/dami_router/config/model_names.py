"""The names of models: those that clients may send, and what a message says of others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dami_router.config.specs import RouterConfig
from dami_router.messages.hints import EFFORT_WORDS
from dami_router.messages.pinning import pinned
from dami_router.shared.strict_model import Wrong
from dami_router.shared.suggestions import did_you_mean, listed

__all__ = ["model_names", "require_aliases", "unknown_model"]

_PRESETS = frozenset(f"dami:{word}" for word in EFFORT_WORDS)
_SHOWN = 8
"""Names that a message lists at most."""


def model_names(config: RouterConfig, served: Iterable[str]) -> list[str]:
    """Return every name but those that pin λ; `served` are the ids of variants that have a server."""
    return ["dami", *(f"dami:{word}" for word in config.presets), *served, *config.aliases]


def unknown_model(model: str, names: Sequence[str]) -> str:
    """Return the message for a name that is none of `names` and pins no λ."""
    presets = [f"`{name}`" for name in names if name in _PRESETS]
    others = [f"`{name:.100}`" for name in names if name != "dami" and name not in _PRESETS]
    if model in _PRESETS and not presets:
        advice = "nothing here turns an effort into λ"
    elif model.startswith("dami:"):
        efforts = f", or an effort: {listed(presets)}" if presets else ""
        advice = f"λ is a number from 0 to 1 with at most six decimal places, as in `dami:0.37`{efforts}"
    elif near := did_you_mean(model, names):
        advice = f"did you mean `{near}`?"
    else:
        rest = [f"{len(others) - _SHOWN} more"] if len(others) > _SHOWN else []
        advice = f"expected {listed(['`dami`', '`dami:0.37`', *others[:_SHOWN], *rest])}"
    return f"no model `{model:.100}`; {advice}"


def require_aliases(config: RouterConfig) -> None:
    """Refuse an alias of nothing, and one that hides a name; raises Wrong."""
    names = {"dami", *(variant.id for variant in config.variants)}
    for alias, name in config.aliases.items():
        place = ("aliases", alias)
        if alias in names or pinned(alias) is not None or alias in _PRESETS:
            raise Wrong(place, f"`{alias:.100}` is a name already")
        if name in names or pinned(name) is not None or config.preset(name) is not None:
            continue
        if name in _PRESETS:
            message = f"`{name}` is the name of an effort, and nothing here turns an effort into λ"
            raise Wrong(place, message, "add `effort` to estimator.chain, or set effort_shift")
        near = did_you_mean(name, sorted({*names, *_PRESETS}))
        hint = f"did you mean `{near}`?" if near else "for instance `dami:0.5` or `dami:low`"
        message = f"expected `dami`, `dami:λ`, `dami:` with an effort, or a variant's id, found {name:.100}"
        raise Wrong(place, message, hint)
