"""What an example is known by: its key, its content, and whether both stay while training goes on."""
