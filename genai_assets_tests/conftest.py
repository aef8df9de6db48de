"""What every room's tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def package_cache() -> Path:
    """Unpacked npm packages, downloaded once and kept: ``GENAI_TEST_CACHE``, else those of the working copy."""
    kept = os.environ.get("GENAI_TEST_CACHE")
    return Path(kept) if kept else Path(__file__).parents[1] / ".genai" / "packages"
