"""litellm-dami: DAMI's estimate of λ(q) inside LiteLLM.

`litellm_dami.hook` and `litellm_dami.classifier` are what LiteLLM's config.yaml names: instances
made from the router.yml that the environment variable DAMI_ROUTER names. They are made when first
asked for, so that each needs only what it uses; `DamiHook` and `DamiClassifier` are their classes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litellm_dami.classifying import DamiClassifier
    from litellm_dami.logger import DamiHook

    hook: DamiHook
    classifier: DamiClassifier

__version__ = "0.1.0"

__all__ = ["DamiClassifier", "DamiHook", "__version__", "classifier", "hook"]

_CLASSES = {"DamiHook": "logger", "DamiClassifier": "classifying"}
_INSTANCES = {"hook": "DamiHook", "classifier": "DamiClassifier"}


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return getattr(import_module(f"litellm_dami.{_CLASSES[name]}"), name)
    if name in _INSTANCES:
        from litellm_dami.deciding import router_file

        made = globals()[name] = __getattr__(_INSTANCES[name])(router_file())
        return made
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
