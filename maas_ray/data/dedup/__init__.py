"""Exact and near duplicates, contamination: pure functions."""
