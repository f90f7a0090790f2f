"""The server: a replica that orders and applies operations, and the AMP service in front of it."""
