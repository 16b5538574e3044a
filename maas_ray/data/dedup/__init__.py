"""Duplicates and contamination, as pure functions.

`survivors` decides which of several duplicates is kept. `normalise` says when texts are equal, `minhash` when they are
nearly equal, and `decontaminate` when a training row contains text of rows to evaluate with.
"""
