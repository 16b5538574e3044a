"""User-defined tasks and networks."""
