"""The commands that dami-merge adds to `dami`, one module each."""
