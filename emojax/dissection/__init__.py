"""From a probe record to labels: which concept each unit stands for, and how sure that is.

`options` states the similarity functions and their hyperparameters, `scores` and `wpmi` compute
them from a record, `labels` is the result, `table` the paper's Table 1, `truth` compares labels
with what units respond to.
"""
