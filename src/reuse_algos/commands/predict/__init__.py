"""Commands that predict runs and read sweeps."""
