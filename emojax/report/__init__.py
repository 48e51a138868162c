"""Turns result objects and run folders into figures, and run folders into one page."""
