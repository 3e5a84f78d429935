"""Verifying a built family: that the files are what the manifest, the recipe and the endpoints say."""

from dami_merge.verify.family import VerifyReport, verify_family
from dami_merge.verify.problem import Problem

__all__ = ["Problem", "VerifyReport", "verify_family"]
