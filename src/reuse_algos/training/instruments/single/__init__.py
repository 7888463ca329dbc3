"""Single examples of a batch: the batches that they are, how many go through a model at once, and their gradients."""
