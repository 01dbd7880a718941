"""
What ``import memable`` costs a program that imports trio anyway, in fresh processes.

Processor time: an import does nothing but compute, and on a busy machine the wall clock counts what others do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from statistics import median

from figures import Figure, Settings, at_most

#: Fewer would not tell a slow import from a slow start of a process.
LEAST_ROUNDS = 9
GOAL_MS = 150.0

_TIMED = "import time; began = time.process_time(); import {}; print(time.process_time() - began)"


def measure(settings: Settings) -> list[Figure]:
    ours: list[float] = []
    bare: list[float] = []
    # Compiled in advance, as an installed package is, wherever that is kept and whatever the environment says.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(settings.directory / "compiled")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    _import_ms("memable", environment)
    for _ in range(max(settings.rounds, LEAST_ROUNDS)):
        bare.append(_import_ms("trio", environment))
        ours.append(_import_ms("memable", environment))
    over = median(ours) - median(bare)
    return [
        Figure("import memable", median(ours), "ms", "import trio", median(bare), median(ours) / median(bare)),
        Figure("import memable, over import trio", over, "ms", goal=at_most(over, GOAL_MS, "ms")),
    ]


def _import_ms(name: str, environment: dict[str, str]) -> float:
    command = [sys.executable, "-c", _TIMED.format(name)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return float(done.stdout) * 1e3
