"""
A user's value as it is stored: the name of its type beside its JSON text.
"""

from __future__ import annotations

import attrs


@attrs.frozen(weakref_slot=False)
class Encoded:
    """
    A value that stays encoded until somebody asks for it.
    """

    type: str
    "Recorded name of its type, for example ``builtins.str`` or ``list[builtins.int]``."
    data: bytes
    "Its JSON text: UTF-8, on one line."
