"""Doors of MadKV under fuzzing: one target for each decoder and each port, a corpus for each, and what runs them.

A target takes bytes. It makes of them whatever its door takes, hands that over, and returns; what it raises is a bug.
The contract of every door: garbage is refused with an error that it declares, or costs its own connection, and nothing
else; what is taken means one thing.
"""
