"""The lab: a tiny real Instruct/Thinking pair on which the claims of this project can be measured in minutes.

A Qwen3 of 215,000 parameters that computes chains of one-digit arithmetic: ``instruct`` answers at once, ``thinking``
works step by step and then checks its result. Importing this package imports neither torch nor transformers.
"""

from dami_merge.lab.shipped import SHIPPED_PAIR, SHIPPED_ROLLOUTS, copy_pair
from dami_merge.lab.splits import LabQuery, draw_queries, split_of
from dami_merge.lab.task import evaluate, grade, has_think_block

__all__ = [
    "SHIPPED_PAIR",
    "SHIPPED_ROLLOUTS",
    "LabQuery",
    "copy_pair",
    "draw_queries",
    "evaluate",
    "grade",
    "has_think_block",
    "split_of",
]
