"""
Makes an environment for each of the engines that memable is compared with; says why where it cannot.

What they need is in the dependency groups ``bench-...`` of pyproject.toml. memable's own environment stays without it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: The engines, and the oldest Python that each runs on.
PEERS = {"dbos": (3, 11), "dura": (3, 13)}
NEWEST_MINOR = 14


def main() -> None:
    parent = Path(sys.argv[1])
    parent.mkdir(parents=True, exist_ok=True)
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    for name, oldest in PEERS.items():
        reason = _make(parent / name, oldest, groups[f"bench-{name}"])
        why = parent / f"{name}.why"
        if reason is None:
            why.unlink(missing_ok=True)
        else:
            print(f"{name} will be skipped: {reason}", file=sys.stderr)
            why.write_text(reason + "\n", encoding="utf-8")


def _make(place: Path, oldest: tuple[int, int], requirements: list[str]) -> str | None:
    """
    Make one environment unless it is there already; return why it cannot be made, or None.
    """
    if place.exists():
        return None
    python = next((one for one in _pythons() if _version(one) >= oldest), None)
    if python is None:
        return f"it needs Python {oldest[0]}.{oldest[1]}, which is not on the path"
    commands: list[list[str | Path]] = [
        [python, "-m", "venv", place],
        [place / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements],
    ]
    for command in commands:
        done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            shutil.rmtree(place, ignore_errors=True)
            return f"it cannot be installed: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}"
    return None


def _pythons() -> Iterator[str]:
    """
    Yield what may be interpreters, best first: that which memable runs on.
    """
    yield sys.executable
    for minor in range(NEWEST_MINOR, sys.version_info.minor, -1):
        if (found := shutil.which(f"python3.{minor}")) is not None:
            yield found


def _version(python: str) -> tuple[int, int]:
    """
    Return an interpreter's version; 0.0 if it is none, such as the stand-in of a version manager.
    """
    code = "import sys; print(sys.version_info.major, sys.version_info.minor)"
    done = subprocess.run([python, "-c", code], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        return 0, 0
    major, minor = map(int, done.stdout.split())
    return major, minor


if __name__ == "__main__":
    main()
