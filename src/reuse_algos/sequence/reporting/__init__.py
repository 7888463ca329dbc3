"""What a sequence cost and found."""
