"""What a daemon shows of itself and of its cluster over HTTP: metrics, probes, and a page for people."""
