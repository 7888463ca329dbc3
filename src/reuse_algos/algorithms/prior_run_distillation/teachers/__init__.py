"""Where the teachers' logits come from, and whether they are true for what this run sees."""
