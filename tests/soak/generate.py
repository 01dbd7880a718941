"""
Makes up what happens in a story, from a random number: programs, and how each session goes.

The same kinds of programs as the strategies in ``programs``, several times as fast, and with steps in threads.
"""

from __future__ import annotations

import errno
from random import Random

from programs import (
    WORKFLOWS,
    Call,
    Compensate,
    FanOut,
    Once,
    Op,
    Program,
    Raise,
    Scope,
    Sleep,
    Start,
    Step,
    Suspend,
    Together,
)
from soak.weather import Cut, Disturbance, Failure, Interrupt, Weather

_NAMES = sorted(WORKFLOWS)
_PROBES = (None, "asks", "shy")
#: What becomes of a disk: a seed of what is lost in two of three cases.
_LOSSES = ("kill", "nothing", "all")


def random_program(rng: Random) -> Program:
    """
    Return a program of a few operations.
    """
    first = rng.choice([(), (), (Compensate(),), (Compensate(fails=True), Compensate())])
    middle = tuple(_op(rng, rng.choice([0, 1, 1, 2])) for _ in range(rng.randint(1, 3)))
    last = rng.choice([(), (), (), (Raise(),)])
    return (*first, *middle, *last)


def _flag(rng: Random) -> bool:
    return rng.random() < 0.5


def _op(rng: Random, depth: int) -> Op:
    if depth == 0 or rng.random() < 0.4:
        return _leaf(rng)
    match rng.randrange(5):
        case 0:
            return Scope(rng.choice([0.5, 4.0, 40.0]), _inner(rng, depth), _flag(rng), _flag(rng))
        case 1 | 2:
            return FanOut(
                tuple(_inner(rng, depth) for _ in range(rng.randint(1, 3))),
                settles=_flag(rng),
                limit=rng.choice([None, 1, 2]),
                workflow=rng.choice([None, None, *_NAMES]),
                caught=_flag(rng),
            )
        case 3:
            return Call(rng.choice(_NAMES), _inner(rng, depth), _flag(rng))
        case _:
            return Start(rng.choice(_NAMES), _inner(rng, depth))


def _inner(rng: Random, depth: int) -> Program:
    return tuple(_op(rng, depth - 1) for _ in range(rng.randint(1, 2)))


def _leaf(rng: Random) -> Op:  # noqa: PLR0911 - one for each kind
    match rng.randrange(12):
        case 0 | 1:
            return Step()
        case 2 | 3:
            return Step(failures=rng.randint(0, 3), retries=rng.choice([0, 2]), caught=_flag(rng))
        case 4:
            return Step(failures=rng.choice([0, 0, 0, 1]), caught=True, in_thread=True)
        case 5:
            return Suspend(rng.choice([None, 5.0, 50.0]), _flag(rng))
        case 6:
            return Suspend(rng.choice([None, 5.0, 50.0]), caught=True)
        case 7:
            return Sleep(rng.choice([3.0, 30.0]))
        case 8:
            return Compensate(_flag(rng))
        case 9:
            return Compensate(fails=_flag(rng), once=True, probe=rng.choice(_PROBES))
        case 10:
            return Once(fails=_flag(rng), probe=rng.choice(_PROBES), caught=_flag(rng))
        case _:
            return rng.choice([Together((_unfailing(rng), _unfailing(rng))), Suspend(), Raise()])


def _unfailing(rng: Random) -> Step | Sleep | Suspend:
    match rng.randrange(3):
        case 0:
            return Step(failures=rng.randint(0, 3), retries=rng.choice([0, 2]), caught=True)
        case 1:
            return Sleep(rng.choice([3.0, 30.0]))
        case _:
            return Suspend(rng.choice([5.0, 50.0]), caught=True)


def random_weather(rng: Random, *, durability: str) -> Weather:
    """
    Return how a session goes.
    """
    return Weather(
        linger_s=rng.choice([0.0, 2.0, 20.0, 200.0]),
        max_parked=rng.choice([1000, 1000, 0, 1]),
        disturbance=_disturbance(rng),
        is_late=rng.random() < 0.1,
        action_s=rng.choice([0.0, 0.5, 1.5, 5.0, 50.0]),
        pause_s=rng.choice([0.0, 10.0, 1000.0]),
        durability=durability,
        max_write_bytes=rng.choice([None, None, None, 7, 100, 700]),
        segment_bytes=rng.choice([1_024, 3_000, 50_000]) if rng.random() < 0.1 else None,
        drops_checkpoint=rng.random() < 0.1,
        is_looked_at=rng.random() < 0.1,
        max_batch_bytes=rng.choice([1, 300, 1_000]) if rng.random() < 0.1 else None,
    )


def random_loss(rng: Random) -> str | int:
    """
    Return what is lost when a session is cut short.
    """
    return rng.choice(_LOSSES) if rng.random() < 0.4 else rng.randrange(1_000_000)


def _disturbance(rng: Random) -> Disturbance:
    chance = rng.random()
    # Opening takes some thirty calls; a batch takes four.
    is_open = rng.random() < 0.8
    call = rng.randrange(rng.choice([6, 12, 30, 60]) if is_open else 30)
    if chance < 0.84:
        return Cut(call, random_loss(rng), is_open, rng.randrange(8))
    if chance < 0.94:
        error = rng.choice([errno.EIO, errno.ENOSPC])
        return Failure(call, error, rng.choice([0, 1, 100, 600]), random_loss(rng), is_open)
    if chance < 0.97:
        return Interrupt(rng.choice([0.5, 1.5, 4.5, 12.5]))
    return None
