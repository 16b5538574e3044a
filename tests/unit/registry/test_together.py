"""Several processes that use one registry at the same moment."""

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

from maas_ray.registry.bundle import open_bundle
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from tests.support import bundles, forked


def _at_once(work: Callable[..., object], *arguments: object, number: int = 3) -> list[int | None]:
    """Exit codes of processes that begin to work at the same moment."""
    context = forked.context()
    barrier = context.Barrier(number)
    started = [context.Process(target=work, args=(barrier, *arguments)) for _ in range(number)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    return [process.exitcode for process in started]


def _register(barrier: "multiprocessing.synchronize.Barrier", home: str, uri: str) -> None:
    bundle = open_bundle(uri)
    barrier.wait(60)
    Registry(Settings(home=home)).register(bundle)


def test_a_bundle_is_one_version_and_the_tables_are_created_once(tmp_path: Path) -> None:
    settings = Settings(home=str(tmp_path))
    bundle = bundles.publish(settings, "m", bundles.image_task(), tmp_path / "b")
    shutil.rmtree(tmp_path / "b")
    assert _at_once(_register, settings.home, bundle.uri) == [0, 0, 0]
    assert [version.reference for version in Registry(settings).versions("m")] == ["m/1"]
