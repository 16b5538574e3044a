"""`pii`: replaces personal data with its type. `step` is the cleaning step, `patterns` recognises the data."""

from maas_ray.data.cleaning.pii.step import Pii

__all__ = ["Pii"]
