"""What the archive says of runs to come: loss curves, speed, the cost of layers, and sweeps."""
