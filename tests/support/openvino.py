"""Models converted for OpenVINO in the test's own process, which imports the libraries once."""

import warnings
from pathlib import Path

from maas_ray.registry.versions import ModelVersion
from maas_ray.serve.engines.openvino_convert import Converted, _convert, _method, made_once
from maas_ray.settings import Settings


def convert(directory: Path, digest: str, cache: Path, compression: str = "none") -> Converted:
    """Convert a model into the cache, as `openvino_convert.converted` does in a process of its own."""
    target = cache / f"{digest}-{compression}-{_method()}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns
        made_once(target, lambda partial: _convert(directory, partial, compression))
    return Converted.load(target)


def convert_version(settings: Settings, version: ModelVersion) -> None:
    """Convert a version on local storage, so that replicas on this machine need not."""
    convert(Path(version.uri), version.digest, Path(settings.home) / "openvino")
