"""Calibration: how confidence on unlabelled queries becomes a map to λ with a wanted mean λ or mean tokens."""
