"""
Checksums that are built on others.
"""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memable._crc import begin_anew

checksums = st.integers(0, 2**32 - 1)


@given(st.binary(max_size=200), st.integers(0, 3 * 4096), checksums, checksums)
@example(b"", 0, 1, 2)
def test_checksum_begun_anew_is_that_of_the_data(text: bytes, repeats: int, start: int, other: int):
    """Whatever the data, and whatever both are begun with."""
    data = text * (repeats // (len(text) + 1))
    assert begin_anew(crc32(data, start), start, other, len(data)) == crc32(data, other)


@pytest.mark.parametrize("length", [*(2**power + more for power in range(8, 23, 2) for more in (-1, 0, 1)), 10_000_000])
def test_checksum_of_long_data_begun_anew_is_that_of_the_data(length: int):
    """Each length has its own way through the powers of two."""
    data = (bytes(range(256)) * (length // 256 + 1))[:length]
    assert begin_anew(crc32(data, 7), 7, 0xDEADBEEF, length) == crc32(data, 0xDEADBEEF)
