"""Evaluation: scores -> figures with intervals."""
