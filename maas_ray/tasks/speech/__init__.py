"""Tasks on speech: recognition."""

from maas_ray.tasks.speech.recognition import AutomaticSpeechRecognition

__all__ = ["AutomaticSpeechRecognition"]
