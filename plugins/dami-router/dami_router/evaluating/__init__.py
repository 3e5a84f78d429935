"""Evaluation of estimators: scores, comparisons, plots, reports."""
