"""Images in memory: held on a device, augmented there, and brought back to pixels."""
