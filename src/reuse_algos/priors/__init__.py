"""What earlier runs say: choosing them, rebuilding their models, their views, presentations, scores and label noise."""
