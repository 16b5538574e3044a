"""A cache of directories is bounded, keeps what is in use, and survives killed processes."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from maas_ray.cluster import worker_environment
from maas_ray.settings import Settings
from maas_ray.storage.disk_cache import DiskCache, node_cache


def file_of(size: int) -> Callable[[Path], None]:
    return lambda directory: (directory / "weights").write_bytes(b"w" * size) and None


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if not path.name.endswith(".lock")}


def use(cache: DiskCache, name: str, size: int = 40) -> None:
    cache.get(name, file_of(size))
    time.sleep(0.02)  # times of use differ


def test_the_least_recently_used_directory_goes_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=100)
    use(cache, "a")
    use(cache, "b")
    use(cache, "a")
    use(cache, "c")
    assert names(tmp_path) == {"a", "c"}
    use(cache, "large", 400)  # it is in use while it is fetched
    assert names(tmp_path) == {"large"}
    cache.sweep()
    assert names(tmp_path) == set()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_use_stays(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=50)
    held = cache.get("a", file_of(40))
    use(cache, "b")
    assert names(tmp_path) == {"a", "b"}
    again = cache.get("a", file_of(99))
    assert (again.path / "weights").stat().st_size == 40
    del held
    cache.sweep()
    assert "a" in names(tmp_path)
    del again
    use(cache, "c")
    assert names(tmp_path) == {"c"}


def test_what_a_killed_process_used_or_began_may_go(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from maas_ray.storage.disk_cache import DiskCache\n"
        "cache = DiskCache(Path(sys.argv[1]), 10)\n"
        "held = cache.get('used', lambda path: (path / 'weights').write_bytes(b'w' * 40))\n"
        "def begin(path):\n"
        "    (path / 'weights').write_bytes(b'w'); print('begun', flush=True); time.sleep(60)\n"
        "cache.get('begun', begin)\n"
    )
    cache = DiskCache(tmp_path, max_bytes=10)
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        cache.sweep()
        assert names(tmp_path) == {"used", ".begun.partial"}
        process.kill()
    cache.sweep()
    assert names(tmp_path) == set()


def test_downloads_of_earlier_versions_go_when_they_are_a_day_old(tmp_path: Path) -> None:
    for name, age in ((".partial-old", 90_000), (".partial-new", 60)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / "bundle").mkdir()  # without a lock
    DiskCache(tmp_path, max_bytes=10).sweep()
    assert names(tmp_path) == {".partial-new", "bundle"}


def test_threads_that_want_the_same_create_it_once_while_it_is_evicted(tmp_path: Path) -> None:
    made: list[str] = []
    failed: list[BaseException] = []

    def work(name: str) -> None:
        cache = DiskCache(tmp_path, max_bytes=50)
        try:
            for _ in range(30):
                held = cache.get(name, lambda path: made.append(name) or file_of(40)(path))  # type: ignore[func-returns-value]
                assert (held.path / "weights").stat().st_size == 40
                del held
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "aabb"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert failed == []
    assert set(made) == {"a", "b"}


def test_a_failed_creation_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        (path / "half").write_text("x")
        raise OSError("disk full")

    cache = DiskCache(tmp_path, max_bytes=50)
    with pytest.raises(OSError, match="disk full"):
        cache.get("a", fail)
    cache.sweep()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_another_process_deletes_during_a_sweep_counts_as_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(tmp_path, max_bytes=90)
    for name in "abc":
        use(DiskCache(tmp_path, max_bytes=1000), name)
    last_use = DiskCache._last_use

    def meanwhile(self: DiskCache, path: Path) -> float:  # the sizes are known by now
        used = last_use(self, path)
        if path.name == "c" and (tmp_path / "a").is_dir():
            shutil.rmtree(tmp_path / "a")
            (tmp_path / ".a.lock").unlink()
        return used

    monkeypatch.setattr(DiskCache, "_last_use", meanwhile)
    cache.sweep()
    assert names(tmp_path) == {"b", "c"}
    assert not (tmp_path / ".a.lock").exists()


def test_a_directory_is_held_for_ever_by_one_descriptor(tmp_path: Path) -> None:
    def get() -> Path:
        return DiskCache(tmp_path, max_bytes=10).get("a", file_of(40)).for_ever()

    assert get() == tmp_path / "a"
    opened = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert get() == tmp_path / "a"
    assert len(os.listdir("/proc/self/fd")) == opened


def test_workers_know_the_limit_whatever_else_their_node_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = worker_environment(Settings.from_environment({"MAAS_CACHE_GB": "1.5"}))
    for name, value in {**variables, "MAAS_OF_A_LATER_VERSION": "x"}.items():
        monkeypatch.setenv(name, value)
    assert node_cache(tmp_path) == DiskCache(tmp_path, 1.5e9)
