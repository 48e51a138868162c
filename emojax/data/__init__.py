"""The wall to the disk: all reading of images, concepts and weights.

What it refuses, it refuses with `InputError`.
"""
