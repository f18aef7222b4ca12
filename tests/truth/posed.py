"""Large layouts, each posed as one rank: compares the true peak of live bytes with the estimate for its stage.

    python tests/truth/posed.py [NAME …]     prints the table

The test poses models of a half to an eighth of the layers, in less time; parts that do not depend on layers then weigh
more.

The estimate is compared in the parts that are tensors of the engine: without the CUDA context, fragmentation and NCCL's
buffers, which a CPU device (kind "cpu") has none of.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from ranks import cpu_cluster

from launcher.cost import CostModel
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.model import Model, Training
from launcher.planner.options import TrainOptions
from launcher.planner.record import Plan

GIB = 2**30
LLAMA_7B = Model(
    "llama2_7b", hidden=4096, layers=32, heads=32, kv_heads=32, ffn_hidden=11008, gated_mlp=True, vocab=32000,
    seq_len=4096, tied_embeddings=False, norm="rmsnorm", positions="rotary", bias=False,
)  # fmt: skip
LLAMA_13B = replace(LLAMA_7B, name="llama2_13b", hidden=5120, layers=40, heads=40, kv_heads=40, ffn_hidden=13824)
LLAMA_70B = replace(LLAMA_7B, name="llama2_70b", hidden=8192, layers=80, heads=64, kv_heads=8, ffn_hidden=28672)
GPT_22B = Model(
    "gpt_22b", hidden=6144, layers=48, heads=64, kv_heads=64, ffn_hidden=24576, gated_mlp=False, vocab=51200,
    seq_len=2048, tied_embeddings=True,
)  # fmt: skip
GPT_175B = replace(
    GPT_22B, name="gpt3_175b", hidden=12288, layers=96, heads=96, kv_heads=96, head_dim=128, ffn_hidden=49152
)
GPT_WIDE = replace(  # an embedding with a gradient larger than a layer's work
    GPT_22B, name="gpt_wide", hidden=14336, layers=24, heads=112, kv_heads=112, ffn_hidden=57344, vocab=250_880
)


@dataclass(frozen=True)
class Case:
    """One rank of a layout: of pipeline rank `stage`, in a step of `num_micro_batches`. The test poses a model of the
    `depth`-th part of the layers.
    """

    model: Model
    layout: Layout
    num_micro_batches: int
    stage: int = 0
    attention: str = "flash"
    depth: int = 2

    @property
    def job(self) -> Job:
        layout = self.layout
        batch = self.num_micro_batches * layout.dp * layout.micro_batch
        training = Training(batch, attention=self.attention)
        return Job(cpu_cluster(8, num_nodes=-(-layout.world_size // 8)), self.model, training)

    @property
    def name(self) -> str:
        schedule = f" {self.layout.schedule} rank {self.stage}" if self.layout.pp > 1 else ""
        return f"{self.model.name} {self.layout.brief()}{schedule}{' math' if self.attention == 'math' else ''}"


def sp(tp: int, pp: int, dp: int, **more: object) -> Layout:
    return Layout(tp=tp, pp=pp, dp=dp, sequence_parallel=True, **more)  # type: ignore[arg-type]


CASES = [
    Case(LLAMA_7B, Layout(tp=1, pp=1, dp=8, zero_stage=3), 2, depth=4),
    Case(LLAMA_7B, Layout(tp=2, pp=1, dp=4, zero_stage=1), 2, depth=8),
    Case(LLAMA_7B, Layout(tp=1, pp=1, dp=16, zero_stage=2, recompute="full", micro_batch=2), 2),
    Case(LLAMA_7B, Layout(tp=4, pp=2, dp=2), 2, stage=1, depth=4),
    Case(LLAMA_7B, sp(2, 1, 2, cp=2, zero_stage=1), 2, depth=8),
    Case(LLAMA_13B, Layout(tp=2, pp=2, dp=4, zero_stage=1, recompute="full", micro_batch=2), 2, depth=8),
    Case(LLAMA_13B, Layout(tp=2, pp=2, dp=4, zero_stage=3), 4, depth=4),
    Case(LLAMA_13B, Layout(tp=2, pp=2, dp=4, zero_stage=2, recompute="full"), 4, stage=1, depth=4),
    Case(GPT_22B, sp(8, 1, 4, recompute="selective", micro_batch=4), 2, attention="math", depth=8),
    Case(LLAMA_70B, sp(8, 4, 2), 5, depth=8),
    Case(LLAMA_70B, sp(8, 8, 2, schedule="interleaved", virtual_stages=2), 8, stage=1, depth=4),
    Case(LLAMA_70B, Layout(tp=1, pp=1, dp=64, zero_stage=3, recompute="full"), 2, depth=4),
    Case(GPT_175B, Layout(tp=8, pp=8, dp=16, recompute="full"), 8, depth=4),
    Case(GPT_175B, Layout(tp=8, pp=16, dp=4, schedule="gpipe", recompute="full"), 16, stage=15),
    Case(GPT_175B, sp(8, 16, 2, recompute="selective"), 16, depth=6),
    Case(GPT_175B, sp(8, 16, 2, schedule="interleaved", virtual_stages=2), 16),
    Case(GPT_175B, sp(8, 12, 8, schedule="zb_h1", virtual_stages=1), 12, stage=1, depth=4),
    Case(GPT_WIDE, Layout(tp=2, pp=6, dp=2, zero_stage=1, recompute="full"), 8, depth=4),
]


def shallow(case: Case) -> Case:
    """The case with fewer layers, at least one for each chunk of a stage."""
    unit = case.layout.pp * case.layout.virtual_stages
    layers = max(unit, case.model.layers // case.depth // unit * unit)
    return replace(case, model=replace(case.model, layers=layers))


def truth_and_estimate(case: Case) -> dict[str, float]:
    """GiB, true and estimated; `rest` is what is neither parameter nor optimizer state."""
    from pose import pose

    plan = Plan(case.job, case.layout, {}, ())
    found = pose(plan, rank=plan.grid.rank(pp=case.stage), options=TrainOptions())
    parts = CostModel(case.job).stage_parts(case.layout, case.stage)
    estimate = sum(parts.values())
    held = found.parameters_bytes + found.optimizer_bytes
    return {
        "truth": found.peak_bytes / GIB,
        "estimate": estimate / GIB,
        "ratio": estimate / found.peak_bytes,
        "truth_rest": (found.peak_bytes - held) / GIB,
        "estimate_rest": (estimate - parts["parameters"] - parts["optimizer"]) / GIB,
    }


def main(wanted: list[str]) -> None:
    print(f"{'':58}{'truth':>9}{'estimate':>9}{'ratio':>7}   without parameters and optimizer, GiB")
    for case in CASES:
        if all(word in case.name for word in wanted):
            row = truth_and_estimate(case)
            print(
                f"{case.name:58}{row['truth']:9.2f}{row['estimate']:9.2f}{row['ratio']:7.3f}"
                f"{row['truth_rest']:9.2f}{row['estimate_rest']:9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
