"""
Tests of workflows: explorations of crashes, effects that are counted, simulated disks, and laws that keys make true.
"""

from ._testing._crash_plan import Crash, CrashPlan
from ._testing._effects import Effect, Effects
from ._testing._exploring import EngineOptions, explore_crashes
from ._testing._findings import ProblemKind
from ._testing._report import CrashReport, Problem, Result, Schedule
from ._testing._simulated_disk import Fault, PowerCutError, SimulatedDisk, lose_all, lose_nothing

__all__ = [
    "Crash",
    "CrashPlan",
    "CrashReport",
    "Effect",
    "Effects",
    "EngineOptions",
    "Fault",
    "PowerCutError",
    "Problem",
    "ProblemKind",
    "Result",
    "Schedule",
    "SimulatedDisk",
    "explore_crashes",
    "lose_all",
    "lose_nothing",
]
