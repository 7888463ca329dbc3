"""The task of a model: what kind of learning problem it is, and how its outputs and targets are read."""
