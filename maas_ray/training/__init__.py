"""From a prepared dataset to a model bundle and a registered version."""
