"""What a recipe builds beside the Trainer: data, loggers, and what it needs of the machine."""
