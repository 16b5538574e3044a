"""Ray Train: launching the workers, its controller, and its errors."""
