"""Where pairs are kept. So far in memory only; the only package that will know about a disk."""
