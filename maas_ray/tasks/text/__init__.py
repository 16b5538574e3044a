"""Tasks on text: generation, classification of texts and tokens, embeddings."""

from maas_ray.tasks.text.classification import TextClassification
from maas_ray.tasks.text.embeddings import FeatureExtraction
from maas_ray.tasks.text.generation import TextGeneration
from maas_ray.tasks.text.token_classification import TokenClassification

__all__ = ["FeatureExtraction", "TextClassification", "TextGeneration", "TokenClassification"]
