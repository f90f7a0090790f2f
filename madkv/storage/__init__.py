"""Where pairs and logs are kept: in memory, or on disk in LMDB; the only package that knows about a disk."""
