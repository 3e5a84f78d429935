"""Recipes: the strict reading of a merge YAML, what it will do, and λ for every tensor."""
