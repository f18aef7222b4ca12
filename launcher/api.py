"""The Python API: lists of Hydra overrides in, frozen values out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.cost import Estimate
    from launcher.planner import Plan


def estimate(overrides: Sequence[str]) -> Estimate:
    """The estimate of one layout: every layout key that is not pinned takes its plain value, dp fills the cluster.

    Raises InputError where the layout is illegal; a layout that does not fit is estimated with `fits=False`.
    """
    from launcher.config.recompose import load_again
    from launcher.cost.model import CostModel
    from launcher.errors import InputError
    from launcher.layout.legality import problems
    from launcher.layout.resolve import plain_layout

    settings = load_again(overrides)
    layout = plain_layout(settings.job, settings.request)
    if found := problems(settings.job, layout):
        raise InputError(found)
    return CostModel(settings.job).estimate(layout)


def plan(overrides: Sequence[str]) -> Plan:
    """The best plan of a search over every layout key that is not pinned.

    Raises InputError for wrong input and NoLayoutFits where nothing fits.
    """
    from launcher.config.recompose import load_again
    from launcher.planner.build import make_plan

    settings = load_again(overrides)
    return make_plan(settings.job, settings.request, settings.config)
