"""Other stores, measured beside MadKV: how each is started, and a client of each that speaks the line interface."""
