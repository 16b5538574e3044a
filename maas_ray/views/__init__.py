"""Views of datasets, models, runs, evaluations, endpoints, logs and the cluster, for a terminal or as JSON."""
