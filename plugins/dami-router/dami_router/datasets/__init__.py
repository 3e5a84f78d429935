"""Questions from a file or from the Hub, with their expected answers if known."""

from dami_router.datasets.questions import Dataset, Question, load_dataset

__all__ = ["Dataset", "Question", "load_dataset"]
