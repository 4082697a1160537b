"""Evaluation: a checkpoint and labelled images -> predictions -> a report, or other rules."""
