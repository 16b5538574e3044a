"""Validation during training: when, where, and when to stop early."""
