"""The recorder: what turns a training into a run of the archive."""
