"""Replayed rows of a batch: which, through the model, and into the loss."""
