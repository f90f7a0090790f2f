"""The managers: where every key belongs, and who is to hold it."""
