"""What a step costs: layers, communication, and speed over workers."""
