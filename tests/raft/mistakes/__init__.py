"""Mistakes to be put into the Raft core by hand, each as text to be replaced in one of its files."""

from tests.raft.mistakes import core, following, leadership, parts

MUTATIONS = [*core.MUTATIONS, *following.MUTATIONS, *leadership.MUTATIONS, *parts.MUTATIONS]
