"""Batch prediction: files in, a version's answers to their rows out."""
