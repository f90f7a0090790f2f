"""Whole groups on a simulated network, disk and clock, all of it from one seed: every failure can be played again."""
