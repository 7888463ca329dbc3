"""Commands that compare runs, and say what to run next."""
