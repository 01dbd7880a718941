"""
Settings of Hypothesis that all tests share.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Time says nothing about a property, so there is no deadline. Where the variable CI is set, Hypothesis would repeat the
# same examples in each run; there, too, every run looks elsewhere, and a failure prints how to repeat it.
settings.register_profile("memable", deadline=None, derandomize=False, print_blob=True)
# A shared machine is sometimes slow, which is no fault of a test.
settings.register_profile(
    "ci", settings.get_profile("memable"), max_examples=200, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("memable")
