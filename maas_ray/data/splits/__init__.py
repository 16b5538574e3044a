"""Splits: `spec` is the user's choice, `assignment` decides the split of each row, `hashing` has the hashes for it."""
