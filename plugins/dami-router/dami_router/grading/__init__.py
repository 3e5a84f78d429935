"""Grading: is an answer the expected one?"""
