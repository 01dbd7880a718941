"""
Lets trio take its ready tasks in an order that a seed decides, so that a schedule can be repeated.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio


def _scheduler() -> Any:
    """Return the module of trio's scheduler: tests of trio programs, Hypothesis' among them, seed it there."""
    module: Any = trio._core._run  # noqa: SLF001 - trio has no public name for it
    return module


@contextmanager
def seeded_scheduling(seed: int) -> Iterator[None]:
    """
    Inside the block, ``trio.run`` takes ready tasks in an order that depends on *seed* only.
    """
    scheduler = _scheduler()
    source: random.Random = scheduler._r  # noqa: SLF001 - see above
    state, is_deterministic = source.getstate(), scheduler._ALLOW_DETERMINISTIC_SCHEDULING  # noqa: SLF001 - see above
    source.seed(seed)
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # noqa: SLF001 - see above
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = is_deterministic  # noqa: SLF001 - see above
        source.setstate(state)
