"""litellm-dami: DAMI's estimate of λ(q) inside LiteLLM.

LiteLLM's config.yaml refers to `litellm_dami.hook` and `litellm_dami.classifier`: instances created
from the router.yml in the environment variable DAMI_ROUTER. They are created on first access, so that
each needs only what it uses; `DamiHook` and `DamiClassifier` are their classes.
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
