"""Calibration: fit a map from confidence to λ with a target mean λ or mean tokens, on unlabelled queries."""
