"""
Ends this process with the one that started it.
"""

from __future__ import annotations

import os
import threading


def exit_with_parent() -> None:
    """
    Exit as soon as standard input ends: the parent holds its other end, and is gone then.

    At once, as a kill would: there is nobody left to be told, and a store survives that.
    """
    threading.Thread(target=_exit_at_end_of_input, name="exit with parent", daemon=True).start()


def _exit_at_end_of_input() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)
