"""Scores of every unit with every concept, labels, and how far to trust them."""
