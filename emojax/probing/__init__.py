"""One pass of network and CLIP over the images, and the record that it leaves behind.

`network` makes any model a pure function, `step` is the program of one batch, `probe` streams the
batches through it, `partial` keeps a record in the making on disk, and `record` is the result.
"""
