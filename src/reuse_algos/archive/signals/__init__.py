"""Arrays with one row per training example: their files, encodings and look-ups."""
