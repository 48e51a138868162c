"""Training and evaluation of networks, resumable to the bit."""
