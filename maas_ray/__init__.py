"""maas_ray: Model-as-a-Service on Ray. From data to a versioned, autoscaling API, on one cluster."""

__version__ = "0.1.0"
