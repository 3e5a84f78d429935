"""Rollouts: the file format, the grid of queries by variants, and folds of queries."""
