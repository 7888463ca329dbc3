"""What Composer's State means, asked in one place."""
