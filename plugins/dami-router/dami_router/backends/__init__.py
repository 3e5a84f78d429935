"""The servers' protocols: what a server is, what it serves, and how it is asked for log-probabilities."""
