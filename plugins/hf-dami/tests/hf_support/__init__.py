"""A stand-in for GitHub, for `hf extensions install`."""
