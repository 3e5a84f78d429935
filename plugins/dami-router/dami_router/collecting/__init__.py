"""Collecting rollouts: every question to every variant, graded, into a file that a killed run goes on with."""
