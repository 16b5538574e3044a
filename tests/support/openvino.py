"""Models converted for OpenVINO in the test's own process, which imports the libraries once."""

import warnings
from dataclasses import replace
from pathlib import Path

from maas_ray.registry.versions import ModelVersion
from maas_ray.serve.engines.openvino.conversion import Converted, _convert, _method
from maas_ray.settings import Settings
from maas_ray.storage.disk_cache import node_cache


def convert(directory: Path, digest: str, cache: Path, compression: str = "none") -> Converted:
    """Convert a model into the cache, as `conversion.converted` does in a process of its own."""
    name = f"{digest}-{compression}-{_method()}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns
        held = node_cache(cache).get(name, lambda partial: _convert(directory, partial, compression))
    return replace(Converted.load(held.path), held=held)


def convert_version(settings: Settings, version: ModelVersion) -> None:
    """Convert a version on local storage, so that replicas on this machine need not."""
    convert(Path(version.uri), version.digest, Path(settings.home) / "openvino")
