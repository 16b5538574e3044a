"""`pii`: replaces personal data and keys with their type. `step` is the cleaning step; the rest recognises the data."""

from maas_ray.data.cleaning.pii.step import Pii

__all__ = ["Pii"]
