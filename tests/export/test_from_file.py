"""`plan from=FILE`: an export is read back as the same layout; users' files are read, and gaps are reported."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from export_plans import PLANS, plan_of

from launcher.cli import main
from launcher.config.compose import load
from launcher.errors import InputError
from launcher.export.readers import read_from
from launcher.export.rules import effective
from launcher.export.targets import target
from launcher.layout import Layout
from launcher.layout.resolve import plain_layout
from launcher.planner.record import Plan

FILES = {
    "megatron": "start.sh",
    "deepspeed": "ds_config.json",
    "accelerate": "accelerate.yaml",
    "torchtitan": "start.sh",
    "hf": "start.sh",
    "nemo": "start.sh",
}
CASES = [
    (tool, name) for tool in FILES for name in PLANS
    if not list(target(tool).cannot((plan := plan_of(name)).job, plan.layout))
]  # fmt: skip
# What a tool's file does not say, and the command line adds.
GIVEN_TOO = {
    "deepspeed": ("pp", "recompute", "layer_split", "axis_order", "ep"),
    "accelerate": ("micro_batch",),
    "torchtitan": ("layer_split", "virtual_stages", "schedule"),
    "megatron": (),
    "hf": (),
    "nemo": (),
}
# What the tool leaves to the model's code, or counts in another way.
UNSAID = {
    "deepspeed": ("tp", "recompute_fraction", "shard_group"),
    "megatron": ("shard_group",),
    "nemo": ("shard_group", "offload_optimizer"),
}


def exported(tool: str, plan: Plan, folder: Path) -> Path:
    files = dict(target(tool).write(plan).files)
    if tool == "torchtitan":  # the flags, as a user has them on the command line
        files["start.sh"] = "torchrun -m torchtitan.train " + files["torchtitan_flags.txt"]
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder / FILES[tool]


@pytest.mark.parametrize(("tool", "name"), CASES)
def test_an_export_is_read_back_as_the_same_layout(tool: str, name: str, tmp_path: Path) -> None:
    plan = plan_of(name)
    wanted = plan.layout
    reading = read_from(exported(tool, plan, tmp_path))
    assert reading.target == tool
    keys = {k: v for k, v in reading.keys.items() if k not in ("model", "stack") and not k.startswith("model.")}
    also_given = (*GIVEN_TOO[tool], *UNSAID.get(tool, ()))
    given = {key: getattr(wanted, key) for key in also_given}
    keys |= {f"layout.{key}": value or ("all" if key == "shard_group" else value) for key, value in given.items()}
    reading.keys = keys | {"train.global_batch": plan.job.training.global_batch}
    own = [word for word in PLANS[name] if word.startswith(("cluster", "model"))]
    settings = load([*own, *reading.overrides()])
    found = plain_layout(settings.job, settings.request)
    assert said(found) == said(wanted)
    assert settings.job.training.dtype == plan.job.training.dtype


def said(layout: Layout) -> dict[str, object]:
    """What matters of a layout; a ZeRO stage over one rank shards nothing."""
    keys = ("tp", "pp", "dp", "cp", "ep", "micro_batch", "virtual_stages", "recompute", "layer_split", "shards")
    return {key: getattr(layout, key) for key in keys} | {
        "order": effective(layout, layout.axis_order),
        "zero": layout.sharding,
        "sp": layout.sequence_parallel,
        "offload": layout.offload_optimizer,
        "fraction": layout.recompute_fraction,
    }


@pytest.mark.parametrize("name", [name for tool, name in CASES if tool == "megatron"])
def test_megatrons_flags_are_read_back_as_the_same_model(name: str, tmp_path: Path) -> None:
    plan = plan_of(name)
    reading = read_from(exported("megatron", plan, tmp_path))
    reading.keys = {key: value for key, value in reading.keys.items() if key.startswith("model")}
    model = load(reading.overrides()).job.model
    assert model.params == plan.job.model.params
    assert model.rope_theta == plan.job.model.rope_theta


SCRIPT = """
TP=4; PP=2
# --tensor-model-parallel-size 64 is a comment
export SIZES="--tensor-model-parallel-size $TP \\
  --pipeline-model-parallel-size ${PP}"
ARGS=(
  --num-layers 32 --hidden-size 4096 --num-attention-heads 32 --swiglu --normalization RMSNorm
  --position-embedding-type rope --seq-length=4096 --vocab-size 32000 --disable-bias-linear
  --untie-embeddings-and-output-weights --ffn-hidden-size 11008
  --micro-batch-size ${MBS:-2} --global-batch-size 256 --bf16 --use-distributed-optimizer --fp8-format hybrid
  --num-layers-per-virtual-pipeline-stage 4 --sequence-parallel --save $SAVE --new-thing 3 --window-size $WINDOW
)
torchrun --nproc_per_node 8 --nnodes 2 pretrain_gpt.py $SIZES ${ARGS[@]}
"""


def test_a_script_with_variables_arrays_and_comments_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(SCRIPT)
    reading = read_from(tmp_path / "run.sh")
    layout = {key.removeprefix("layout."): value for key, value in reading.keys.items() if key.startswith("layout.")}
    assert layout == {
        "tp": 4, "pp": 2, "micro_batch": 2, "virtual_stages": 4, "sequence_parallel": True, "zero_stage": 1,
        "recompute": "none",
    }  # fmt: skip
    assert reading.keys["cluster.num_nodes"] == 2 and reading.keys["cluster.node.num_gpus"] == 8
    assert any(line.startswith("--fp8-format") for line in reading.unread)
    assert "--window-size $WINDOW" in reading.unread  # not of the files, which change nothing here
    assert "flags that are not known here: --new-thing" in reading.unread
    assert not any("--save" in line for line in reading.unread)
    model = load(["cluster=dgx_a100_80g", *reading.overrides()]).job.model
    assert model.params == 6_738_415_616  # Llama 2 7B


BATCH = r"""#!/bin/bash
#SBATCH --nodes=4
#SBATCH --gres=gpu:a100:8
#SBATCH --ntasks-per-node=1
set -euo pipefail
MODEL=${1:-7B}
TP=${TP:-2}                     # degree
: ${PP:=2}
NNODES=$SLURM_NNODES
GPUS=$SLURM_GPUS_PER_NODE
MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
TOUCHED=`touch FOLDER/ran-1`
PRINTED="$(touch FOLDER/ran-2; echo --tensor-model-parallel-size 64)"
python -c "open('FOLDER/ran-3', 'w')"
if [ $MODEL = 13B ]; then
    LAYERS=40
elif [[ "$MODEL" == 7B ]]; then
    LAYERS=32
else
    LAYERS=80; echo "unknown model"
fi
case $MODEL in
    13B) HIDDEN=5120 ;;
    7*)
        HIDDEN=4096 ;;
esac
[ "$PP" -gt 1 ] && SCHEDULE="--num-layers-per-virtual-pipeline-stage 8"
if [ "$COLOR" = red ]; then SP=--sequence-parallel; else SP=""; fi
ARGS=(
    --num-layers $LAYERS        # layers don't come alone
    # --recompute-granularity full
    --hidden-size "${HIDDEN}" --num-attention-heads 32
    --tensor-model-parallel-size ${TP}
)
ARGS+=(--pipeline-model-parallel-size $PP)
UNUSED="--context-parallel-size 8"
OPTIONS="--micro-batch-size 1 \
         --global-batch-size $((NNODES * GPUS * 4)) \
         --bf16"
OPTIONS="$OPTIONS $SCHEDULE $SP"
python tools/preprocess_data.py --workers 64
RUN="torchrun --nproc_per_node $GPUS --nnodes ${NNODES} --master_addr $MASTER pretrain_gpt.py ${ARGS[@]} $OPTIONS"
echo "$RUN" --context-parallel-size 4
srun -l bash -c "cd x && $RUN $EXTRA"
"""


def test_a_batch_script_is_read_as_the_shell_would_start_it_and_nothing_runs(tmp_path: Path) -> None:
    (tmp_path / "job.sbatch").write_text(BATCH.replace("FOLDER", str(tmp_path)))
    reading = read_from(tmp_path / "job.sbatch")
    keys = {key.partition(".")[2]: value for key, value in reading.keys.items()}
    assert {key: keys[key] for key in ("tp", "pp", "virtual_stages", "micro_batch", "global_batch")} == {
        "tp": 2, "pp": 2, "virtual_stages": 2, "micro_batch": 1, "global_batch": 128,
    }  # fmt: skip
    assert (keys["num_nodes"], keys["node.num_gpus"]) == (4, 8)
    assert (keys["layers"], keys["hidden"], keys["sequence_parallel"], keys["recompute"]) == (32, 4096, False, "none")
    assert "cp" not in keys  # of a variable that nothing uses, and of what is printed
    assert "the condition that sets SP to --sequence-parallel or nothing: nothing is taken" in reading.unread
    assert "$EXTRA" in reading.unread
    assert [path.name for path in tmp_path.iterdir()] == ["job.sbatch"]


@pytest.mark.parametrize(
    ("script", "degree"),
    [
        ("TP=4\npython pretrain_gpt.py --tensor-model-parallel-size $TP", 4),
        ("TP=4\nunset X; python pretrain_gpt.py --tensor-model-parallel-size=${TP}", 4),
        ("A='--tensor-model-parallel-size 4'\npython pretrain_gpt.py $A", 4),
        ("N=16\npython pretrain_gpt.py --tensor-model-parallel-size $((N / 4))", 4),
        ("N=16\npython pretrain_gpt.py --tensor-model-parallel-size ${TP:-${N}}", 16),
        ("TP=2 python pretrain_gpt.py --tensor-model-parallel-size $TP", 2),
        ("for TP in 8; do python pretrain_gpt.py --tensor-model-parallel-size $TP; done", 8),
        ("run() {\n  python pretrain_gpt.py \\\n  --tensor-model-parallel-size 2\n}\nrun", 2),
        ("TP=2\nif true; then\n TP=8\nfi\npython pretrain_gpt.py --tensor-model-parallel-size $TP", 8),
        ("TP=2\nif [ 1 -gt 2 ]; then\n TP=8\nfi\npython pretrain_gpt.py --tensor-model-parallel-size $TP", 2),
        ("cat <<EOF\n--tensor-model-parallel-size 8\nEOF\npython x.py --tensor-model-parallel-size 4", 4),
        ("--tensor-model-parallel-size 4 \\\n --bf16", 4),
        ("export TENSOR_ARGS='--tensor-model-parallel-size 4'", 4),
        ("python a.py --tensor-model-parallel-size 1 --tensor-model-parallel-size 4", 4),
    ],
)
def test_forms_of_a_shell(script: str, degree: int, tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(script)
    assert read_from(tmp_path / "run.sh").keys["layout.tp"] == degree


@pytest.mark.parametrize("value", ["$TP", "$(nproc)", "`nproc`", "$1", "$((1 / 0))", "$((9 ** 9))", "${TP%x}"])
def test_what_only_the_job_knows_is_asked_for(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.sh").write_text(f"python pretrain_gpt.py --tensor-model-parallel-size {value} --bf16")
    words = ["plan", f"from={tmp_path / 'run.sh'}", "cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64"]
    assert main([*words, "output=json"]) == 2
    assert "--tensor-model-parallel-size $" in (said := capsys.readouterr().out) and "give layout.tp=" in said
    assert main([*words, "layout.tp=2", "output=json"]) == 0
    assert json.loads(capsys.readouterr().out)["yours"]["layout"]["tp"] == 2


def test_a_number_that_a_condition_decides_is_asked_for_and_no_secret_is_shown(tmp_path: Path) -> None:
    script = (
        "export HF_TOKEN=hf_secret\nTP=2\nif [ $SIZE = large ]; then\n TP=8; HF_TOKEN=hf_other\nelse\n TP=4\nfi\n"
        "PP=2; [ $# -gt 1 ] && PP=$2\nif [ $FULL = 1 ]; then MORE='--recompute-granularity full'; fi\n"
        "python pretrain_gpt.py --tensor-model-parallel-size $TP --pipeline-model-parallel-size $PP $MORE "
        "> log.txt 2>&1"
    )
    (tmp_path / "run.sh").write_text(script)
    reading = read_from(tmp_path / "run.sh")
    assert reading.open == {"layout.tp": "--tensor-model-parallel-size $TP"}
    assert reading.keys["layout.pp"] == 2  # a default that an argument may change
    assert reading.keys["layout.recompute"] == "full"
    assert not any("hf_" in line or "log.txt" in line for line in reading.unread)


def test_flags_of_megatron_deepspeed_and_of_earlier_versions(tmp_path: Path) -> None:
    shape = "--num-layers 24 --hidden-size 1024 --num-attention-heads 16 --tensor-model-parallel-size 2"
    plugin = "--deepspeed --deepspeed_config ds.json --zero-stage 1 --deepspeed-activation-checkpointing"
    (tmp_path / "run.sh").write_text(f"deepspeed pretrain_gpt.py {shape} {plugin} --no-pipeline-parallel")
    reading = read_from(tmp_path / "run.sh")
    assert (reading.keys["stack"], reading.keys["layout.zero_stage"]) == ("megatron_deepspeed", 1)
    assert reading.keys["layout.recompute"] == "full"
    assert not any("not known here" in line for line in reading.unread)
    (tmp_path / "run.sh").write_text(f"python pretrain_gpt.py {shape} --activations-checkpoint-method uniform")
    assert read_from(tmp_path / "run.sh").keys["layout.recompute"] == "full"


def test_the_width_of_experts_is_theirs(tmp_path: Path) -> None:
    shape = "--num-layers 48 --hidden-size 2048 --num-attention-heads 32 --ffn-hidden-size 6144"
    experts = "--num-experts 128 --moe-router-topk 8 --moe-ffn-hidden-size 768"
    (tmp_path / "run.sh").write_text(f"python pretrain_gpt.py {shape} {experts}")
    assert read_from(tmp_path / "run.sh").keys["model.ffn_hidden"] == 768


def test_a_value_that_doubles_forever_ends(tmp_path: Path) -> None:
    lines = [
        "A=xxxxxxxxxx",
        *["A=$A$A"] * 60,
        "python pretrain_gpt.py --num-layers 2 --tensor-model-parallel-size 2 $A",
    ]
    (tmp_path / "run.sh").write_text("\n".join(lines))
    assert read_from(tmp_path / "run.sh").keys["layout.tp"] == 2


HABITS = {
    "--no-rope-fusion": ("stack.fused_rotary", False),
    "--no-bias-swiglu-fusion": ("stack.fused_activation", False),
    "--no-bias-gelu-fusion": ("stack.fused_activation", None),  # this model has SwiGLU
    "--cross-entropy-loss-fusion": ("stack.fused_loss", True),
    "--no-gradient-accumulation-fusion": ("stack.fused_accumulation", False),
    "--tp-comm-overlap": ("stack.tp_overlap", "async"),
    "--no-async-tensor-model-parallel-allreduce": ("stack.tp_overlap", "none"),
    "--grad-reduce-in-bf16": ("stack.grad_reduce_dtype", "bf16"),
    "--accumulate-allreduce-grads-in-fp32": ("stack.grad_reduce_dtype", "fp32"),
    "--overlap-grad-reduce": ("stack.overlap_grad_reduce", True),
    "--bf16": ("stack.overlap_grad_reduce", False),
    "--transformer-impl local": ("train.attention", "fused"),
    "--transformer-impl local --no-masked-softmax-fusion": ("train.attention", "math"),
    "--transformer-impl local --use-flash-attn": ("train.attention", None),
    "--transformer-impl local --bf16": ("stack.fused_norm", False),
    "--attention-backend unfused": ("train.attention", "fused"),
    "--attention-backend flash": ("train.attention", None),
}


@pytest.mark.parametrize("flags", HABITS)
def test_flags_of_megatrons_kernels_and_overlap_are_read(flags: str, tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(SCRIPT.replace("pretrain_gpt.py", f"pretrain_gpt.py {flags}"))
    key, value = HABITS[flags]
    assert read_from(tmp_path / "run.sh").keys.get(key) == value


def test_a_node_script_that_names_hosts_is_read_to_its_end(tmp_path: Path) -> None:
    plan = replace(plan_of("context pipeline"), hosts=("a", "b"))
    keys = read_from(exported("megatron", plan, tmp_path)).keys
    assert (keys["layout.tp"], keys["layout.cp"], keys["layout.pp"]) == (2, 2, 2)


def test_keys_of_deepspeeds_overlap_and_sums_are_read(tmp_path: Path) -> None:
    def read(**data: object) -> dict[str, object]:
        (tmp_path / "ds.json").write_text(json.dumps({"bf16": {"enabled": True}, **data}))
        return read_from(tmp_path / "ds.json").keys

    assert read(zero_optimization={"stage": 1})["stack.overlap_grad_reduce"] is False
    assert read(zero_optimization={"stage": 2, "overlap_comm": True})["stack.overlap_grad_reduce"] is True
    assert read(zero_optimization={"stage": 3, "overlap_comm": False})["stack.overlap_gathers"] is False
    sums = {"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}}
    assert read(zero_optimization={"stage": 1}, **sums)["stack.grad_reduce_dtype"] == "fp32"
    assert "stack.grad_reduce_dtype" not in read(zero_optimization={"stage": 1}, communication_data_type="fp32")
    assert "communication_data_type=fp32" in read_from(tmp_path / "ds.json").unread


def test_yours_and_the_best_are_shown_with_the_difference_in_the_tools_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.sh").write_text(SCRIPT)
    assert main(["plan", f"from={tmp_path / 'run.sh'}", "cluster=dgx_a100_80g"]) == 0
    out = capsys.readouterr().out
    assert "was read as a file of Megatron-LM" in out and "not read: --fp8-format hybrid" in out
    assert "yours  tp4 pp2 dp2 mb2 v4 zero1 sp:" in out
    assert "% faster" in out and "tp 4 → " in out
    assert "---tensor-model-parallel-size 4" in out and "+--tensor-model-parallel-size" in out


SMALL = (
    "torchrun --nproc_per_node 8 pretrain_gpt.py --tensor-model-parallel-size 1 --num-layers 38 --hidden-size 2048 "
    "--num-attention-heads 16 --seq-length 2048 --max-position-embeddings 2048 --micro-batch-size 4 "
    "--global-batch-size 512 --bf16 --use-flash-attn --use-distributed-optimizer"
)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "layout.risk=0.05",
            r"^yours is 0\.9% faster, but fits with a probability of \d\d% only, and layout.risk=0.05 ",
        ),
        ("layout.risk=1", r"^yours is the best that was found$"),
        ("layout.max_memory_gib=30", r"^yours is 0\.9% faster, but needs more memory than layout.max_memory_gib and "),
    ],
)
def test_a_faster_layout_that_the_search_leaves_out_for_its_memory_is_called_so(
    word: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.sh").write_text(SMALL)
    assert main(["plan", f"from={tmp_path / 'run.sh'}", "cluster=dgx_a100_40g", word]) == 0
    assert re.search(said, capsys.readouterr().out, re.MULTILINE)


def test_layers_of_stages_that_differ_alone_are_the_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without them a layout that is slower by a tenth was called the best that was found."""
    stages = "--pipeline-model-parallel-size 2 --decoder-first-pipeline-num-layers 14"
    (tmp_path / "run.sh").write_text(SMALL.replace("--num-layers 38", f"--num-layers 40 {stages}"))
    pinned = ["layout.tp=1", "layout.pp=2", "layout.micro_batch=4", "layout.virtual_stages=1", "layout.zero_stage=1"]
    pinned += ["layout.recompute=none", "cluster=dgx_a100_80g"]
    assert main(["plan", f"from={tmp_path / 'run.sh'}", *pinned, "output=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["difference"] == ["layer_split [14, 26] → [20, 20]"]
    assert main(["plan", f"from={tmp_path / 'run.sh'}", *pinned]) == 0
    assert f"{found['verdict']}: layer_split [14, 26] → [20, 20]" in capsys.readouterr().out


def test_software_that_the_user_names_has_its_own_habits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.sh").write_text(SCRIPT.replace("pretrain_gpt.py", "pretrain_gpt.py --no-rope-fusion"))
    steps = []
    for more in ([], ["stack=megatron_lm"], ["stack=megatron_lm", "stack.fused_rotary=false"]):
        assert main(["plan", f"from={tmp_path / 'run.sh'}", "cluster=dgx_a100_80g", "output=json", *more]) == 0
        steps.append(json.loads(capsys.readouterr().out)["yours"]["step_time_s"])
    read, named, by_hand = steps
    assert named < by_hand < read  # the file reduces gradients after the backward pass too


def test_the_document_has_both_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.sh").write_text(SCRIPT)
    assert main(["plan", f"from={tmp_path / 'run.sh'}", "cluster=dgx_a100_80g", "output=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tool"], found["yours"]["layout"]["tp"]) == ("megatron", 4)
    assert found["best"]["step_time_s"] <= found["yours"]["step_time_s"]
    assert found["unread"] and found["difference"]


def test_micro_batches_of_deepspeed_make_the_global_batch_of_this_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4, "zero_optimization": {"stage": 2}}
    (tmp_path / "ds.json").write_text(json.dumps(data | {"bf16": {"enabled": True}, "sparse_attention": {}}))
    words = ["plan", f"from={tmp_path / 'ds.json'}", "cluster=dgx_a100_80g", "model=llama2_7b", "output=json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["yours"]["layout"]["dp"] == 8 and found["yours"]["layout"]["zero_stage"] == 2
    assert "sparse_attention" in found["unread"]


def test_fsdp_of_accelerate_is_read_by_name_and_by_number(tmp_path: Path) -> None:
    for words, zero, group in (
        ("FULL_SHARD", 3, None),
        ("2", 2, None),
        ("HYBRID_SHARD", 3, "node"),
        ("false", 2, None),
    ):
        key = "fsdp_reshard_after_forward" if words == "false" else "fsdp_sharding_strategy"
        (tmp_path / "a.yaml").write_text(
            f"distributed_type: FSDP\nnum_machines: 2\nnum_processes: 16\nfsdp_config:\n  {key}: {words}\n"
        )
        keys = read_from(tmp_path / "a.yaml").keys
        assert (keys["layout.zero_stage"], keys.get("layout.shard_group")) == (zero, group)
        assert (keys["cluster.num_nodes"], keys["cluster.node.num_gpus"]) == (2, 8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "give a file that is here"),
        ("nothing of note", "is nothing that is read"),
        ("{", "not valid JSON"),
        ('{"zero_optimization": {"stage": 7}}', "stage=7 must be 0, 1, 2 or 3"),
        ("--tensor-model-parallel-size many", "must be a whole number"),
        ("distributed_type: [", "a.txt"),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_sharding_strategy: SOME}\n", "SOME is unknown"),
    ],
)
def test_what_cannot_be_read_is_one_message(
    text: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.txt"
    if text is not None:
        file.write_text(text)
    assert main(["plan", f"from={file}", "cluster=dgx_a100_80g"]) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err


ZERO_3 = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 3}}
TITAN = "torchrun -m torchtitan.train --training.seq_len 2048 --parallelism.data_parallel_shard_degree -1 "


@pytest.mark.parametrize(
    ("name", "text", "given", "words"),
    [
        ("ds.json", json.dumps(ZERO_3 | {"train_batch_size": 64}), "", "which model it trains: give model=NAME"),
        ("run.sh", TITAN + "--training.local_batch_size 2", "", "which model it trains: give model=NAME"),
        ("run.sh", TITAN, "model=llama2_7b", "how many sequences a step has: give train.global_batch="),
    ],
)
def test_a_job_that_the_file_does_not_say_is_asked_for(
    name: str, text: str, given: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default it would be a tiny GPT in steps of 16 sequences, and a best plan 16 times as fast."""
    (tmp_path / name).write_text(text)
    assert main(["plan", f"from={tmp_path / name}", "cluster=dgx_a100_80g", *given.split()]) == 2
    out, err = capsys.readouterr()
    assert words in err and out == ""


@pytest.mark.parametrize("more", ["", " --training.global_batch_size -1"])
def test_the_batch_of_torchtitan_is_that_of_its_ranks_where_no_other_is_said(
    more: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.sh").write_text(f"{TITAN} --training.local_batch_size 2{more}")
    words = ["cluster=dgx_a100_80g", "model=llama2_7b", "layout.recompute=full", "output=json"]
    assert main(["plan", f"from={tmp_path / 'run.sh'}", *words]) == 0
    yours = json.loads(capsys.readouterr().out)["yours"]
    tokens = yours["tokens_per_s_per_gpu"] * 8 * yours["step_time_s"]
    assert tokens == pytest.approx(8 * 2 * 2048) and yours["layout"]["micro_batch"] == 2


def test_zero_plus_plus_shards_as_zero_3_does_and_what_else_it_has_is_named(tmp_path: Path) -> None:
    more = {"stage": 3, "zero_hpz_partition_size": 8, "zero_quantized_weights": True, "zero_quantized_gradients": False}
    (tmp_path / "ds.json").write_text(json.dumps(ZERO_3 | {"zero_optimization": more}))
    reading = read_from(tmp_path / "ds.json")
    assert "layout.shard_group" not in reading.keys
    named = [line.partition(":")[0] for line in reading.unread if line.startswith("zero_optimization.")]
    assert named == ["zero_optimization.zero_hpz_partition_size", "zero_optimization.zero_quantized_weights"]


def test_a_layout_that_is_not_legal_here_says_what_was_read(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(SCRIPT.replace("TP=4", "TP=3"))
    with pytest.raises(InputError, match="as read, with the keys"):
        from launcher.commands.from_file import run

        run([f"from={tmp_path / 'run.sh'}", "cluster=dgx_a100_80g"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plan.json", ["is a plan of the launcher", "plan="]),
        ("config.json", ["is the shape of a model", "model=hf:"]),
        ("package.json", ["has name, version, which no reader knows", "DeepSpeed's JSON"]),
    ],
)
def test_json_of_another_kind_is_not_read_as_deepspeeds(
    name: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a key of DeepSpeed's it would be ZeRO 0 in fp32, whatever the file is of."""
    job = ["cluster=dgx_a100_80g", "model=gpt3_350m", "train.global_batch=64", "layout.zero_stage=3"]
    assert main(["export", *job, "to=hf", f"out={tmp_path / 'out'}"]) == 0
    (tmp_path / "out/package.json").write_text('{"name": "x", "version": "1"}')
    (tmp_path / "out/config.json").write_text('{"architectures": ["LlamaForCausalLM"], "hidden_size": 4096}')
    capsys.readouterr()
    assert main(["plan", f"from={tmp_path / 'out' / name}", *job[:2]]) == 2
    out, err = capsys.readouterr()
    assert out == "" and [word for word in words if word not in err] == []


def test_an_optimizer_on_the_host_stays_where_the_search_cannot_decide_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    data = {"train_micro_batch_size_per_gpu": 2, "train_batch_size": 64, "zero_optimization": zero}
    (tmp_path / "ds.json").write_text(json.dumps(data | {"bf16": {"enabled": True}}))
    words = ["plan", f"from={tmp_path / 'ds.json'}", "cluster=dgx_a100_80g", "model=llama2_7b", "output=json"]
    found = []
    for more in ([], ["cluster.node.host_memory_gib=0"], ["train.offload_optimizer=false"]):
        assert main([*words, *more]) == 0
        document = json.loads(capsys.readouterr().out)
        found.append([document[which]["layout"]["offload_optimizer"] for which in ("yours", "best")])
    assert found == [[True, False], [True, True], [False, False]]
