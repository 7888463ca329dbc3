"""What the recorder writes down of code, hardware, model, dataset and state."""
