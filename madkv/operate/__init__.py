"""What operators do with nodes and clusters from outside: look at a directory, ask how a cluster is."""
