"""What one value of a recipe changes: batch size, and attack strength."""
