"""
What all tests share: settings of Hypothesis, and the stores.
"""

from __future__ import annotations

import signal
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from stores import DirectoryPlace, MemoryPlace, Place

# An installed memable brings its plugin along, and pytest takes none twice.
_OWN_PLUGIN = [] if entry_points(group="pytest11", name="memable") else ["memable._pytest_plugin"]
pytest_plugins = ["pytester", *_OWN_PLUGIN]

# A shell lets what it runs in the background ignore control-C, and tests that press it would go astray.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Time says nothing about a property, so there is no deadline. Where the variable CI is set, Hypothesis would repeat the
# same examples in each run; there, too, every run looks elsewhere, and a failure prints how to repeat it.
settings.register_profile("memable", deadline=None, derandomize=False, print_blob=True)
# A shared machine is sometimes slow, which is no fault of a test.
settings.register_profile(
    "ci", settings.get_profile("memable"), max_examples=200, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("memable")


@pytest.fixture(params=["memory", "directory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """
    Somewhere that a store is kept, for tests that hold for each kind of store.
    """
    return MemoryPlace() if request.param == "memory" else DirectoryPlace(tmp_path / "store")
