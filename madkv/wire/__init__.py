"""What crosses a connection: public AMP commands, boxes written and parsed by hand, and the base protocol."""
