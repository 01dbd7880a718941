"""
The command ``python -m soak``: tells stories for as long as it is told to.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from random import Random, SystemRandom

from soak.driver import NUMBERS, tell_stories
from soak.tally import Tally

#: A story that takes longer, in seconds of real time, runs in circles.
STORY_LIMIT_S = 120
#: So many stories a worker tells at once.
CHUNK = 20
#: What a short soak does not reach says nothing.
MIN_CUTS_FOR_COVERAGE = 20_000


def main() -> int:
    """
    Run the command. Return its exit status: 1 if a story has failed, or something planned was never reached.
    """
    options = _options()
    if options.story is not None:
        return _tell_one(options.story)
    seed = SystemRandom().randrange(NUMBERS) if options.seed is None else options.seed
    _say(f"soak: --seed {seed}, {options.minutes:g} minutes, {options.jobs} jobs")
    began = time.monotonic()
    tally = Tally()
    try:
        _tell_many(tally, seed, options, began)
    except KeyboardInterrupt:
        _say("interrupted")
    seconds = time.monotonic() - began
    _say("\n" + tally.summary(seconds))
    missing = tally.missing()
    is_long = tally.counts["power cuts"] >= MIN_CUTS_FOR_COVERAGE
    if missing:
        _say(f"\nNever reached{'' if is_long else ' (it was short)'}: {', '.join(missing)}")
    if options.json is not None:
        options.json.write_text(json.dumps(tally.as_json(seconds, seed), indent=2) + "\n", encoding="utf-8")
    for failed in tally.failed:
        _say(f"failed: --story {failed.number}: {failed.problem.splitlines()[0]}")
    return int(bool(tally.failed) or (is_long and bool(missing)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description="Runs engines over a disk that loses power, at length.")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long")
    parser.add_argument("--seed", type=int, help="the stories follow from it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--story", type=int, help="tell this story only, and everything that happens in it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary there, too")
    parser.add_argument("--max-failures", type=int, default=10, help="end after so many")
    return parser.parse_args()


def _tell_one(number: int) -> int:
    tally = tell_stories([number], limit_s=STORY_LIMIT_S)
    _say(tally.summary(1.0))
    for failed in tally.failed:
        _say("\n".join(["", *failed.operations, "", failed.traceback]))
    return int(bool(tally.failed))


def _tell_many(tally: Tally, seed: int, options: argparse.Namespace, began: float) -> None:
    chunks = _chunks(seed)
    ends_at = began + 60 * options.minutes
    next_line_at = began + 60
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        pending: set[Future[Tally]] = set()
        while True:
            is_over = time.monotonic() >= ends_at or len(tally.failed) >= options.max_failures
            while not is_over and len(pending) < options.jobs + 1:
                pending.add(pool.submit(tell_stories, next(chunks), limit_s=STORY_LIMIT_S))
            if not pending:
                return
            done, pending = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
            for future in done:
                found = future.result()
                for failed in found.failed:
                    _say("\n".join([f"\n--story {failed.number} failed: {failed.problem}", *failed.operations]))
                    _say(failed.traceback)
                tally.add(found)
            if time.monotonic() >= next_line_at:
                next_line_at += 60
                _say(tally.progress(time.monotonic() - began))


def _chunks(seed: int) -> Iterator[list[int]]:
    numbers = Random(seed)
    while True:
        yield [numbers.randrange(NUMBERS) for _ in itertools.repeat(None, CHUNK)]


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - a command prints


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of a set is part of a story.
        os.execve(sys.executable, [sys.executable, "-m", "soak", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"})  # noqa: S606 - itself
    sys.exit(main())
