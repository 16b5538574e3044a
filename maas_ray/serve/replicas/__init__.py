"""Parts of model replicas: batching, the cache of shared replicas, the direct path, and rows of text."""
