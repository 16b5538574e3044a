"""Metrics of a version on a split."""
