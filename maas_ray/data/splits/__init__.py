"""Assigning rows to splits."""
