"""DeepSpeed: the user's document, its defaults, and the engine that runs it."""
