"""Verifying a built family: that the files are what the manifest, the recipe and the endpoints say."""

from dami_merge.verify.problem import Problem
from dami_merge.verify.verifying import VerifyReport, verify_family

__all__ = ["Problem", "VerifyReport", "verify_family"]
