"""Rendered faces whose truth is known, and the small networks that ship with emojax."""
