"""Tasks: speech."""

from maas_ray.tasks.speech.recognition import AutomaticSpeechRecognition

__all__ = ["AutomaticSpeechRecognition"]
