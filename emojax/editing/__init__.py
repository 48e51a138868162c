"""Edits of a network by its labels, and sweeps of thousands of them."""
