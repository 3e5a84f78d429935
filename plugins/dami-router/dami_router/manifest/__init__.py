"""The family manifest: read from a folder or the Hub, and the pair behind it."""
