"""A run as it is known: its identity, its record in MLflow, and its lease."""
