"""Tasks on images: classification."""

from maas_ray.tasks.vision.classification import ImageClassification

__all__ = ["ImageClassification"]
