"""Publishing a family on the Hugging Face Hub, and getting it back."""

from dami_merge.hub.pulling import PullReport, pull_family
from dami_merge.hub.push_plan import Layout, PushOptions, PushPlan, plan_push
from dami_merge.hub.pushing import Pushed, PushReport, push_family

__all__ = [
    "Layout", "PullReport", "PushOptions", "PushPlan", "PushReport", "Pushed", "plan_push", "pull_family",
    "push_family",
]  # fmt: skip
