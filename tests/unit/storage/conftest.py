"""Homes of artifacts, and a directory to publish."""

import uuid
from pathlib import Path

import pytest

from tests.support.artifacts import FILES, make


@pytest.fixture(params=["local", "memory"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URI under which nothing lies yet."""
    return str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}/store"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make(tmp_path / "source", FILES)
