"""The modules that the fork server imports exist under the names that it knows."""

from importlib.util import find_spec

from tests.support.forkserver import MODULES


def test_every_module_that_the_fork_server_imports_exists() -> None:
    assert [name for name in MODULES if find_spec(name) is None] == []
