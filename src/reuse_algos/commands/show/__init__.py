"""Commands that show what an archive holds: its runs, one of them, and scores of examples."""
