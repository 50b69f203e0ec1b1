"""Where the real data lies, and loaders without a trainer."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples every time, and no time limit an example: the machine may be busy with other things.
# `make soak` asks for ten times as many.
settings.register_profile(
    "data",
    deadline=None,
    derandomize=True,
    max_examples=int(os.environ.get("LIT_TFM_EXAMPLES", "100")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("data")


@pytest.fixture(scope="session")
def shared_data():
    """Folder of real data sets; a test skips where it is absent."""
    root = Path(os.environ.get("LIT_TFM_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set LIT_TFM_SHARED_DATA")
    return root


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One cache for the whole session: what the cache does is tested with folders of their own."""
    return tmp_path_factory.mktemp("cache")
