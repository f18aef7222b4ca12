"""The engine that a plan names; only that one is imported."""

from __future__ import annotations

from launcher.errors import InputError
from launcher.layout.engines import OWN, habit_problems
from launcher.worker.engines.engine import Engine, EngineContext


def build_engine(context: EngineContext) -> Engine:
    """The engine that the plan names; imports only that one.

    Raises InputError where the plan is for software that the engines are not built as.
    """
    job = context.plan.job
    if job.stack.name != OWN:
        raise InputError(
            f"this plan is for stack={job.stack.name}, and the engines here are stack={OWN}: plan again for it"
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
