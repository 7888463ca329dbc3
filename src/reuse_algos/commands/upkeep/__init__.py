"""Commands that copy, check and remove runs."""
