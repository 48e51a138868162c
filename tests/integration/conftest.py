"""What the demos of these tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def demo_cache(tmp_path_factory) -> Path:
    """The cache of all demos: the first of them fills it."""
    return tmp_path_factory.mktemp("demos") / "cache"
