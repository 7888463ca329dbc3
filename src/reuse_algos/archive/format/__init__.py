"""The archived records: names, envelopes, manifests, generations, metrics and tensor files."""
