"""
Seconds since 1970 to the datetimes that users see.
"""

from __future__ import annotations

from datetime import UTC, datetime

_LATEST = datetime.max.replace(tzinfo=UTC)


def utc_datetime(unix_s: float) -> datetime:
    """
    Return the instant as an aware datetime in UTC; one past the year 9999 as the last one there is.
    """
    try:
        return datetime.fromtimestamp(unix_s, UTC)
    except (OverflowError, ValueError, OSError):
        return _LATEST
