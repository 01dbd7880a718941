"""
Compensations: a trip is booked piece by piece, and if a piece cannot be had, what was booked before is given back.

    python examples/saga.py              # there are no cars in Venice, so flight and hotel are cancelled again
    python examples/saga.py Lisbon       # all goes well

The outside world is the folder ``saga-agency``: a file is a booking. Kill the process anywhere, and run it again: in
the end there are all three bookings, or none. Remove ``saga-agency`` and the directory ``saga-data`` to begin anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

import memable


@dataclass(frozen=True)
class Trip:
    """
    Where to, and the folder of the agency that books it.
    """

    city: str
    agency: Path


# The agency ---------------------------------------------------------------------------------------------------------
# Both calls may be made twice, as a crash can come between an effect and its record: the reference makes that harmless.


async def book(trip: Trip, what: str, reference: str) -> str:
    if (trip.city, what) == ("Venice", "car"):
        raise memable.PermanentError("there are no cars in Venice")
    await trio.Path(trip.agency / reference).write_text(f"{what} in {trip.city}")
    print(f"booked a {what} in {trip.city}", flush=True)
    return reference


async def cancel(trip: Trip, what: str, reference: str) -> None:
    try:
        await trio.Path(trip.agency / reference).unlink()
    except FileNotFoundError:
        print(f"no {what} in {trip.city} to cancel", flush=True)
    else:
        print(f"cancelled the {what} in {trip.city}", flush=True)


# The workflow -------------------------------------------------------------------------------------------------------


@memable.workflow
async def book_trip(ctx: memable.Context, trip: Trip) -> list[str]:
    bookings: list[str] = []
    for what in ("flight", "hotel", "car"):
        key = f"book-{what}:v1"
        # Registered before the booking is made: so there is no moment at which a booking has nothing that undoes it.
        # What is not booked can be cancelled, too.
        await ctx.compensate(f"cancel-{what}:v1", cancel, trip, what, ctx.step_id(key))
        bookings.append(await ctx.step(key, book, trip, what, ctx.step_id(key)))
    return bookings


async def main(words: Sequence[str] = ()) -> None:
    city = words[0] if words else "Venice"
    await trio.Path("saga-agency").mkdir(exist_ok=True)
    agency = Path(await trio.Path("saga-agency").resolve())
    policy = memable.RetryPolicy.exponential(5, 0.5)
    async with memable.open_engine("saga-data", workflows=[book_trip], default_retry=policy) as engine:
        invocation = await engine.invoke(book_trip, Trip(city, agency), instance_id=f"trip-to-{city}")
        try:
            print("have a nice trip:", *(reference[:8] for reference in await invocation.result()))
        except memable.WorkflowFailedError as error:
            print("no trip:", error.error.message)
            for entry in await engine.history(book_trip, invocation.instance_id):
                if entry.kind == "compensation":
                    print("undone:", entry.key, "failed" if entry.error else "done")


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
