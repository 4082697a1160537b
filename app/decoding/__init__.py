"""Decoding in processes of its own, which are supervised and can be replaced at any moment."""
