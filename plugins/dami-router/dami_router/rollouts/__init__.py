"""Graded answers: their file, their arrangement as a grid, and folds of their queries."""
