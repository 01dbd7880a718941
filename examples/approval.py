"""
A workflow that waits for a person: days, if need be, and no process has to run meanwhile.

    python examples/approval.py             # hands in an expense, shows that it waits, and ends
    python examples/approval.py approve     # another process: decides, and the workflow goes on to its end
    python examples/approval.py refuse

Decide twice: exactly one decision counts. Decide nothing for three days: the timeout does, at the next run if none
was up when it passed. Remove the directory ``approval-data`` to begin anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import trio

import memable

THREE_DAYS_S = 3 * 86_400.0


@dataclass(frozen=True)
class Expense:
    """
    What somebody wants back.
    """

    employee: str
    purpose: str
    amount: Decimal


@dataclass(frozen=True)
class Decision:
    """
    What the workflow waits for. Its type is checked when somebody signals, not when the workflow reads it.
    """

    approved: bool
    by: str


DECISION = memable.SuspendPoint("decision:v1", Decision)


async def pay(expense: Expense, reference: str) -> str:
    # A bank is given the reference as its idempotency key, as a crash may run this a second time.
    print(f"paying {expense.amount} to {expense.employee}, reference {reference[:8]}")
    return f"receipt {reference[:8]}"


@memable.workflow
async def reimburse(ctx: memable.Context, expense: Expense) -> str:
    try:
        decision = await ctx.suspend(
            DECISION, status=f"may {expense.employee} have {expense.amount}?", timeout=THREE_DAYS_S
        )
    except memable.SuspendTimeoutError:
        return "refused, as nobody decided in three days"
    if not decision.approved:
        return f"refused by {decision.by}"
    receipt = await ctx.step("pay:v1", pay, expense, ctx.step_id("pay:v1"))
    return f"approved by {decision.by}, {receipt}"


async def main(words: Sequence[str] = ()) -> None:
    expense = Expense("Ada", "a visit to the mill", Decimal("12.50"))
    async with memable.open_engine("approval-data", workflows=[reimburse]) as engine:
        # The first run starts the instance; a later one gets a handle on it, whatever its state.
        invocation = await engine.invoke(reimburse, expense, instance_id="expense-1")
        print(await invocation.wait())
        if words:
            decision = Decision(approved=words[0] == "approve", by="Charles")
            try:
                await engine.signal(reimburse, "expense-1", DECISION, decision)
            except (memable.SignalSupersededError, memable.SignalRejectedError) as error:
                print("too late:", error)
        state = await invocation.wait()
        if isinstance(state, memable.Suspended):
            print("decide with: python approval.py approve | refuse")
        else:
            print(await invocation.result())


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
