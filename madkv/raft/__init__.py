"""Raft as a pure step machine: messages, log, progress, core, invariants. No socket, no clock, no file.

Names and section numbers are those of Ongaro and Ousterhout, *In Search of an Understandable Consensus Algorithm*
(extended version, 2014), "the paper", and of Ongaro's dissertation, *Consensus: Bridging Theory and Practice* (2014).
"""
