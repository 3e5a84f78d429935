"""Building a family of variants: both endpoints streamed once, every variant written."""

from dami_merge.build.family import BuildReport, Options, build_family

__all__ = ["BuildReport", "Options", "build_family"]
