"""Endpoints of a text model and an image model, and requests to them."""

from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from maas_ray import DeploySpec, deploy
from maas_ray.settings import Settings
from tests.support.bundles import image_task, text_task

SMALL = {"scaling": {"max_replicas": 1}, "resources": {"cpus": 0.5}}
TEXT, IMAGES = text_task(), image_task()


@dataclass(frozen=True)
class Served:
    url: str
    settings: Settings
    text: Path  # the bundle's files


def put(settings: Settings, version: str, **changes):
    return deploy(DeploySpec.parse({"version": version, **SMALL, **changes}), settings=settings)


def complete(url: str, **changes) -> httpx.Response:
    body = {"model": "lm", "prompt": "def ", "max_tokens": 8, "temperature": 0} | changes
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60)


def image_request(pixels: np.ndarray) -> dict:
    return {
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}]
    }
