"""From a sequence file to the steps to be trained."""
