"""Reading: image sets and their batches, audits, concepts, weights, encoders.

What cannot be used is refused with `emojax.errors.InputError`, before any work on it.
"""
