"""Networks as flax.nnx modules, with converters from PyTorch names. They know no files, no mesh.

A classifier gives `logits, taps = model(images)`: a tap is one layer's output.
"""
