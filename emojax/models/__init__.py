"""Networks as flax.nnx modules, with converters from PyTorch names.

They know no files and no mesh.
"""
