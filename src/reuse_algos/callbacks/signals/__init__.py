"""Per-example signals of the forward passes: measured, checked against the first batch, and kept."""
