"""
Instants and durations as people read them.
"""

from __future__ import annotations

from datetime import UTC, datetime

import attrs

_MINUTE_S = 60
_HOUR_S = 3600
_DAY_S = 86400
#: Below this a difference is told as none: it is as old as the reading of the store.
_JUST_NOW_S = 1.0


@attrs.frozen
class Moments:
    """
    Tells instants, in one time zone and seen from one "now".
    """

    now: datetime
    "The time of day, aware."
    is_utc: bool = False
    "Whether to tell them in UTC; else in the machine's local time."

    @property
    def zone(self) -> str:
        """
        What is to be said of the times, for headings.
        """
        return "UTC" if self.is_utc else "local time"

    def tell(self, at: datetime) -> str:
        """
        Return date and time, to the second.
        """
        if not self.is_utc:
            try:
                at = at.astimezone()
            except (OverflowError, ValueError, OSError):
                # Beyond the years that the system can convert.
                return f"{at:%Y-%m-%d %H:%M:%S} UTC"
        return f"{at:%Y-%m-%d %H:%M:%S}"

    def since(self, at: datetime) -> str:
        """
        Return how long ago it was, or how long it will be, roughly.
        """
        seconds = (self.now - at).total_seconds()
        if abs(seconds) < _JUST_NOW_S:
            return "now"
        return f"{tell_roughly(seconds)} ago" if seconds > 0 else f"in {tell_roughly(-seconds)}"

    def tell_both(self, at: datetime) -> str:
        """
        Return date and time, and how long ago that was.
        """
        return f"{self.tell(at)} ({self.since(at)})"


def tell_roughly(seconds: float) -> str:
    """
    Return a duration in its greatest unit, rounded down.
    """
    for unit_s, name in ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "min")):
        if seconds >= unit_s:
            return f"{int(seconds // unit_s)} {name}"
    return f"{int(seconds)} s"


def tell_duration(seconds: float) -> str:
    """
    Return a duration that is not negative, to two or three digits.
    """
    # Each unit takes over where the one before it would be rounded to more than it holds.
    for below_s, text in (
        (0.00005, "<0.1 ms" if seconds else "0 s"),
        (0.00995, f"{seconds * 1000:.1f} ms"),
        (0.9995, f"{seconds * 1000:.0f} ms"),
        (59.95, f"{seconds:.1f} s"),
    ):
        if seconds < below_s:
            return text
    whole = round(seconds)
    for unit_s, name, next_s, next_name in (
        (_DAY_S, "d", _HOUR_S, "h"),
        (_HOUR_S, "h", _MINUTE_S, "min"),
    ):
        if whole >= unit_s:
            return _tell_two(whole, unit_s, name, next_s, next_name)
    return _tell_two(whole, _MINUTE_S, "min", 1, "s")


def _tell_two(whole_s: int, unit_s: int, name: str, next_s: int, next_name: str) -> str:
    count, rest = divmod(whole_s, unit_s)
    less = rest // next_s
    return f"{count} {name} {less} {next_name}" if less else f"{count} {name}"


def iso(at: datetime) -> str:
    """
    Return an instant as ISO 8601 in UTC, to the microsecond, so that texts sort as instants do.
    """
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
