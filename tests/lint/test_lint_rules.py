"""Every rule sees its trap, and keeps silent on the way out that it recommends."""

from __future__ import annotations

import pytest

from launcher.lint import RULES, lint

HEAD = "#!/bin/bash\n#SBATCH --nodes=4 --ntasks-per-node=1 --gpus-per-node=8\n"
TORCHRUN = "torchrun --nnodes=4 --nproc-per-node=8"

# rule → (a script with the trap, the same script without it)
CASES = {
    "launcher-times-tasks": (
        HEAD + "#SBATCH --ntasks-per-node=8\nsrun torchrun --nproc-per-node=8 t.py\n",
        HEAD + "srun torchrun --nproc-per-node=8 t.py\n",
    ),
    "launcher-on-first-node": (HEAD + f"{TORCHRUN} t.py\n", HEAD + f"srun {TORCHRUN} t.py\n"),
    "gpus-per-task": (HEAD + "srun --gpus-per-task=1 ./t.sh\n", HEAD + "srun --gpus-per-node=8 ./t.sh\n"),
    "gpu-bind": (HEAD + "#SBATCH --gpu-bind=single:1\n", HEAD + "#SBATCH --gpu-bind=none\n"),
    "node-rank-with-c10d": (
        HEAD + f"srun bash -c '{TORCHRUN} --rdzv-backend=c10d --node-rank=$SLURM_NODEID t.py'\n",
        HEAD + f"srun bash -c '{TORCHRUN} --rdzv-backend=static --node-rank=$SLURM_NODEID t.py'\n",
    ),
    "expanded-too-early": (
        HEAD + f'srun bash -c "{TORCHRUN} --node-rank=$SLURM_PROCID t.py"\n',
        HEAD + f'srun bash -c "{TORCHRUN} --node-rank=\\$SLURM_PROCID t.py"\n',
    ),
    "nnodes-mismatch": (HEAD + "srun torchrun --nnodes=2 t.py\n", HEAD + "srun torchrun --nnodes=$SLURM_NNODES t.py\n"),
    "more-ranks-than-gpus": (
        HEAD + "srun torchrun --nproc_per_node 16 t.py",
        HEAD + "srun torchrun --nproc_per_node 8 t.py",
    ),
    "idle-gpus": (HEAD + "srun torchrun --nproc-per-node=4 t.py\n", HEAD + "srun torchrun --nproc-per-node=8 t.py\n"),
    "tp-over-node": (
        HEAD + "srun python t.py --tensor-model-parallel-size 16",
        HEAD + "TP_SIZE=8\nsrun python t.py --tp=8",
    ),
    "one-task-without-launcher": (
        HEAD + "srun python -u train.py\n",
        HEAD + "#SBATCH --ntasks-per-node=8\nsrun python train.py\n",
    ),
    "cpus-not-inherited": (
        HEAD + "#SBATCH --cpus-per-task=64\nsrun ./train.sh\n",
        HEAD + "#SBATCH --cpus-per-task=64\nexport SRUN_CPUS_PER_TASK=64\nsrun ./train.sh\n",
    ),
    "no-kill-on-bad-exit": (HEAD + "srun ./train.sh\n", HEAD + "srun -K ./train.sh\n"),
    "compressed-node-list": (
        HEAD + "export MASTER_ADDR=${SLURM_NODELIST%%,*}\n",
        HEAD + 'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)\n',
    ),
    "loopback-master": (
        HEAD + 'MASTER_ADDR="localhost"\n',
        HEAD.replace("--nodes=4", "--nodes=1") + "MASTER_ADDR=localhost\n",
    ),
    "own-name-as-master": (
        HEAD + "srun bash -c 'MASTER_ADDR=$(hostname) ./t'\n",
        HEAD + "MASTER_ADDR=$(hostname)\nsrun bash -c './t'\n",
    ),
    "localhost-fallback": (HEAD + "A=$(getent hosts x || echo localhost)\n", HEAD + "# || echo localhost is a trap\n"),
    "ephemeral-port": (HEAD + "MASTER_PORT=45678\n", HEAD + "MASTER_PORT=29500\n"),
    "random-port": (
        HEAD + "export MASTER_PORT=$((RANDOM + $RANDOM))\n",
        HEAD + "MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))\n",
    ),
    "constant-rdzv-id": (
        HEAD + "srun torchrun --rdzv_id 101 t.py\n",
        HEAD + "srun torchrun --rdzv_id $SLURM_JOB_ID t.py\n",
    ),
    "nccl-on-loopback": (HEAD + "export GLOO_SOCKET_IFNAME=lo\n", HEAD + "export GLOO_SOCKET_IFNAME=ib0\n"),
    "nccl-transport-off": (HEAD + "export NCCL_IB_DISABLE=1\n", HEAD + "export NCCL_IB_DISABLE=0\n"),
    "no-shebang": ("#SBATCH -N1\n", "#!/bin/sh\n#SBATCH -N1\n"),
    "late-directive": (HEAD + "cd /tmp\n#SBATCH --time=1\n", HEAD + "\n# comment\n#SBATCH --time=1\ncd /tmp\n"),
    "broken-directive": (HEAD + "# SBATCH --time=1\n", HEAD + "##SBATCH --time=1\n# SBATCH options are above\n"),
    "variable-in-directive": (HEAD + "#SBATCH -o $HOME/%j.out\n", HEAD + "#SBATCH -o %x-%j.out\n"),
    "log-folder-too-late": (
        HEAD + "#SBATCH -e out/%j.err\nmkdir -p out/\n",
        HEAD + "#SBATCH -e out/%j.err\nmkdir -p data\n",
    ),
    "no-signal": (HEAD + "#SBATCH --time=60\nsrun ./t\n", HEAD + "#SBATCH --time=60 --signal=USR1@60\nsrun ./t\n"),
    "signal-without-trap": (
        HEAD + "#SBATCH --signal=B:TERM@60\nsrun ./t\n",
        HEAD + "#SBATCH --signal=B:TERM@60\ntrap : TERM\n",
    ),
    "trap-behind-foreground": (HEAD + "trap save USR1\nsrun ./t\n", HEAD + "trap save USR1\nsrun ./t & wait\n"),
    "requeue-truncates-log": (HEAD + "#SBATCH --requeue\n", HEAD + "#SBATCH --requeue --open-mode=append\n"),
    "exit-code-lost": (HEAD + "srun ./t 2>&1 | tee log\n", HEAD + "set -euo pipefail\nsrun ./t 2>&1 | tee log\n"),
    "secret-in-clear": (
        HEAD + "wandb login 0123456789abcdef0123456789abcdef01234567\n",
        HEAD + "export WANDB_API_KEY=$(cat ~/.wandb_key)\ngit checkout 0123456789abcdef0123456789abcdef01234567\n",
    ),
    "one-thread": (
        HEAD + "#SBATCH --cpus-per-task=64\nexport OMP_NUM_THREADS=1\n",
        HEAD + "#SBATCH --cpus-per-task=64\nexport OMP_NUM_THREADS=8\nsrun torchrun --nproc-per-node=8 t.py\n",
    ),
    "devices-overridden": (HEAD + "export CUDA_VISIBLE_DEVICES=0,1\n", HEAD + "echo $CUDA_VISIBLE_DEVICES\n"),
    "debugging-left-on": (HEAD + "CUDA_LAUNCH_BLOCKING=1 srun ./t\n", HEAD + "export NCCL_DEBUG=WARN\n"),
    "export-none": (
        HEAD + "#SBATCH --export=NONE\nsrun ./t\n",
        HEAD + "#SBATCH --export=NONE\nsrun --export=ALL ./t\n",
    ),
}


def names(script: str) -> set[str]:
    return {finding.rule for finding in lint(script)}


@pytest.mark.parametrize("rule", [rule.name for rule in RULES])
def test_a_rule_sees_its_trap_and_accepts_the_way_out(rule: str) -> None:
    trap, way_out = CASES[rule]
    assert rule in names(trap)
    assert rule not in names(way_out)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_says_why_and_what_to_do(rule) -> None:
    assert rule.severity in ("error", "warning")
    assert len(rule.reason) > 40
    assert rule.fix


def test_no_secret_is_repeated_in_a_finding() -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    findings = lint(
        f"#!/bin/bash\nexport WANDB_API_KEY={key}\nwandb login {key}\nHF_TOKEN=hf_{key} srun ./t\n"
        f"srun ./t --wandb_key {key}\nsrun ./t --hub-token=abcdefghijklmnopqrstuvwxyz\n"
    )
    assert [finding.line for finding in findings if finding.rule == "secret-in-clear"] == [2, 3, 4, 5, 6]
    assert not any(key[:8] in str(finding) for finding in findings)


def test_gpus_per_node_come_from_the_cluster_where_the_script_is_silent() -> None:
    from launcher.cluster import Cluster, Gpu, Node

    gpu = Gpu("a100", "cuda", 80 * 2**30, 2e12, {}, 108)
    cluster = Cluster("four", 2, Node(gpu, 4, ((0, 1, 2, 3),)))
    script = "#!/bin/bash\n#SBATCH --nodes=2\nsrun python t.py --tensor-parallel-size 8\n"
    assert "tp-over-node" not in names(script)
    assert "tp-over-node" in {finding.rule for finding in lint(script, cluster=cluster)}
