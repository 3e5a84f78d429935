"""The mathematics of λ: the formula, depth, schedules, paths, and how settings resolve."""
