"""Chooses the plan's engine and imports only that one."""

from __future__ import annotations

from launcher.errors import InputError
from launcher.layout.engines import OWN, habit_problems
from launcher.worker.engines.engine import Engine, EngineContext


def build_engine(context: EngineContext) -> Engine:
    """Build the plan's engine; import only that one.

    Raises InputError if the plan is for a stack other than the engines'.
    """
    job = context.plan.job
    if job.stack.name != OWN:
        raise InputError(
            f"this plan is for stack={job.stack.name}, but the engines here are stack={OWN}: plan again for it"
        )
    if found := habit_problems(job):
        raise InputError(found)
    name = context.plan.job.training.engine
    if name == "torch":
        from launcher.worker.engines.torch_engine import TorchEngine

        return TorchEngine(context)
    if name == "deepspeed":
        from launcher.worker.engines.deepspeed_engine import build_deepspeed_engine

        engine: Engine = build_deepspeed_engine(context)
        return engine
    raise InputError(f"train.engine={name!r} is unknown: choose torch or deepspeed")
