"""The whole product in small, on the tiny pair: merge a family, answer, estimate λ(q), route, report."""
