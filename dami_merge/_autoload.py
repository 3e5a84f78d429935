"""The start-up hook that makes stock `mergekit-yaml` know the method `dami`.

mergekit 0.1.5 has no discovery of outside methods. `install` puts a finder first in
`sys.meta_path` that waits for `mergekit.merge_methods.registry`; when somebody imports it,
the finder steps aside and registers our method right after the module has run. Python calls
`install` at start-up through `dami_merge_autoload.pth` (Python 3.15 and later through
`dami_merge_autoload.start`, PEP 829).

This module is imported in every Python process of the environment. It imports nothing that
is not loaded anyway, never raises, and does nothing where `DAMI_NO_AUTOLOAD=1` or where
mergekit is never imported.
"""

import os
import sys

TARGET = "mergekit.merge_methods.registry"


class _Finder:
    """Finds `TARGET` once, by asking the finders behind it, and wraps its loader."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        """Answer for TARGET alone."""
        if name != TARGET:
            return None
        remove()
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find is not None else None
            if spec is not None:
                _wrap(spec)
                return spec
        return None


def install() -> None:
    """Install the finder, at most once; never raises."""
    if os.environ.get("DAMI_NO_AUTOLOAD") == "1" or TARGET in sys.modules:
        return
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def remove() -> None:
    """Take the finder out of `sys.meta_path`."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


def _wrap(spec) -> None:  # type: ignore[no-untyped-def]
    loader = spec.loader
    run = getattr(loader, "exec_module", None)
    if run is None:
        return

    def exec_module(module):  # type: ignore[no-untyped-def]
        run(module)
        _register()

    try:
        loader.exec_module = exec_module
    except AttributeError:
        return  # a loader that takes no attributes: `dami merge` remains


def _register() -> None:
    # mergekit must work whatever is wrong with us: a failure is one line, not a traceback.
    adapter = sys.modules.get("dami_merge.mergekit_adapter")
    if adapter is not None and not hasattr(adapter, "register"):
        return  # our adapter is what imports mergekit just now, and registers itself
    try:
        from dami_merge.mergekit_adapter import register

        register()
    except Exception as error:
        import logging

        logging.getLogger("dami_merge").warning(
            "merge_method `dami` is not available in this mergekit (%s: %s)", type(error).__name__, error
        )
