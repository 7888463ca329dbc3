"""How each kind of comparison reads a group: over its training, over several budgets, or at the end only."""
