"""A working directory with a user's own code."""

from pathlib import Path

import pytest

from maas_ray.user_code import trust
from tests.support.custom import CODE


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `mine.py`; no code is vouched for yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trust, "_vouched", set())
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path
