"""The demo on the tiny pair: merge, answer, estimate λ(q), route, answer at exactly λ(q), report."""
