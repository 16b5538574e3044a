"""A look at prepared datasets: what is in them, what was left out, and why."""
