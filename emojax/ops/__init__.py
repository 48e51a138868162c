"""Pure array functions: one idea a file, each with a float64 reference in the tests.

They import jax (and scipy, lazily) and no other package of emojax. Shapes are jaxtyping
annotations, with axes I images, U units, C concepts, K top-k, D embedding, B batch.
"""
