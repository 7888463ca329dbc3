"""Where the bytes of an archive are: local directories, object stores, and the cache of remote files."""
