"""
Times as users see them.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from memable._times import utc_datetime


@pytest.mark.parametrize(
    ("unix_s", "expected"),
    [
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (1_700_000_000.5, datetime(2023, 11, 14, 22, 13, 20, 500_000, tzinfo=UTC)),
        (253402300799, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (253402300800, datetime.max.replace(tzinfo=UTC)),
        (1e300, datetime.max.replace(tzinfo=UTC)),
        (math.inf, datetime.max.replace(tzinfo=UTC)),
    ],
)
def test_instant_is_an_aware_datetime_in_utc(unix_s: float, expected: datetime):
    """
    Seconds since 1970 are shown as an aware datetime in UTC; past the year 9999 as the last one there is.
    """
    assert utc_datetime(unix_s) == expected
    assert utc_datetime(unix_s).tzinfo is UTC
