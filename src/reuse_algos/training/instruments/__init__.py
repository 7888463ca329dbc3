"""What the gradients and the curvature of a run say: pure functions that touch neither the model nor any generator."""
