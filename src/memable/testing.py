"""
Tests of workflows: explorations of crashes, effects that are counted, simulated disks, and laws that keys make true.
"""

from ._testing._crash_plan import Crash, CrashPlan
from ._testing._disk_faults import DiskCall, DiskFault
from ._testing._effects import Effect, Effects
from ._testing._exploring import EngineOptions, explore_crashes
from ._testing._faulty_steps import Conduct, Fail, FaultyStep, Hang, Pass, Slow, by_plan, fails, hangs, slow
from ._testing._findings import ProblemKind
from ._testing._journals import restore_journal
from ._testing._laws import assert_order_independent, assert_replays
from ._testing._machine import Instance, WorkflowMachine
from ._testing._report import CrashReport, Problem, Report, Result, Schedule
from ._testing._signals import Receipt, Signal
from ._testing._simulated_disk import Fault, PowerCutError, SimulatedDisk, lose_all, lose_nothing
from ._testing._simulated_store import SimulatedStore
from ._testing._strategies import clock_jumps, crash_plans, signals
from ._testing._upgrading import UpgradeReport, explore_upgrade

__all__ = [
    "Conduct",
    "Crash",
    "CrashPlan",
    "CrashReport",
    "DiskCall",
    "DiskFault",
    "Effect",
    "Effects",
    "EngineOptions",
    "Fail",
    "Fault",
    "FaultyStep",
    "Hang",
    "Instance",
    "Pass",
    "PowerCutError",
    "Problem",
    "ProblemKind",
    "Receipt",
    "Report",
    "Result",
    "Schedule",
    "Signal",
    "SimulatedDisk",
    "SimulatedStore",
    "Slow",
    "UpgradeReport",
    "WorkflowMachine",
    "assert_order_independent",
    "assert_replays",
    "by_plan",
    "clock_jumps",
    "crash_plans",
    "explore_crashes",
    "explore_upgrade",
    "fails",
    "hangs",
    "lose_all",
    "lose_nothing",
    "restore_journal",
    "signals",
    "slow",
]
