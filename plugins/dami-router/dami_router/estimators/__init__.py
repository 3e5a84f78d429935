"""Estimators of λ(q): how hard a query needs thinking. Their exact forms are ours, not the DAMI paper's."""
