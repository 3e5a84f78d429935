"""Publishing a family on the Hugging Face Hub, and getting it back."""

from dami_merge.hub.pull import PullReport, pull_family
from dami_merge.hub.push import Pushed, PushReport, push_family
from dami_merge.hub.push_plan import Layout, PushOptions, PushPlan, plan_push

__all__ = [
    "Layout", "PullReport", "PushOptions", "PushPlan", "PushReport", "Pushed", "plan_push", "pull_family",
    "push_family",
]  # fmt: skip
