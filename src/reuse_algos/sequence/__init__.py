"""Sequences: recipes run one after the other, each seeing the archive of those before, with and without reuse.

    config = load_sequence("yamls/sequences/five_seeds.yaml")
    plan = plan_sequence(config)
    states = run_sequence(plan)
    print_report(sequence_report(config, states, RunArchive(config.archive)), console)

What a sequence file can say is in :class:`~reuse_algos.sequence.planning.schema.SequenceConfig`.
"""

from reuse_algos.sequence.launchers import Job, Launcher, LocalLauncher
from reuse_algos.sequence.planning.loading import load_sequence
from reuse_algos.sequence.planning.plan import Plan, PlannedStep, plan_sequence
from reuse_algos.sequence.planning.schema import SequenceConfig
from reuse_algos.sequence.progress import StepState, look_up_states
from reuse_algos.sequence.reporting.render import print_plan, print_report
from reuse_algos.sequence.reporting.report import sequence_report
from reuse_algos.sequence.reporting.result import SequenceReport
from reuse_algos.sequence.running.driver import run_sequence

__all__ = [
    "Job",
    "Launcher",
    "LocalLauncher",
    "Plan",
    "PlannedStep",
    "SequenceConfig",
    "SequenceReport",
    "StepState",
    "load_sequence",
    "look_up_states",
    "plan_sequence",
    "print_plan",
    "print_report",
    "run_sequence",
    "sequence_report",
]
