"""Checkpoints: what a folder or a Hub repository holds, and whether two of them fit together."""
