"""Collection of rollouts: run every query on every variant, grade, and append to a file that a killed run resumes."""
