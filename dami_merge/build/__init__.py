"""Building a family of variants: both endpoints streamed once, every variant written.

`family`, and torch with it, is imported when it is asked for: pushing and pulling use the
folder, the hashes and the manifest of a build, but no arithmetic.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dami_merge.build.building import BuildReport, Options, build_family

__all__ = ["BuildReport", "Options", "build_family"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dami_merge.build import building

    return getattr(building, name)
