"""Pure array functions. They import jax and no other room of the house."""
