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
    "ephemeral-port": (
        HEAD + "MASTER_PORT=$(expr 30000 + $(echo -n $SLURM_JOBID | tail -c 4))\n",
        HEAD + "MASTER_PORT=$(expr 10000 + $(echo -n $SLURM_JOBID | tail -c 4))\n",
    ),
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
    "dos-line-breaks": (HEAD.replace("\n", "\r\n"), HEAD + "printf 'a\\r\\n' > table\n"),
    "typographic-character": (
        HEAD + "#SBATCH –time=60\n",
        HEAD + "#SBATCH --time=60 # – a dash in a comment\n# “quoted”\necho 'a – b'\n",
    ),
    "unknown-option": (HEAD + "#SBATCH --gpu-per-node=8\n", HEAD + "#SBATCH --container-image=x --cpus-per-t=4\n"),
    "blank-around-equals": (HEAD + "#SBATCH --time = 60\n", HEAD + "#SBATCH --time 60 --mem=0\nA=1\n[ $A = 1 ]\n"),
    "tilde-in-directive": (HEAD + "#SBATCH -o ~/logs/%j.out\n", HEAD + "#SBATCH -o logs~/%j.out\nls ~/logs\n"),
    "option-twice": (HEAD + "#SBATCH --time=60\n#SBATCH -t 90\n", HEAD + "#SBATCH --time=60\n#SBATCH -t 60\n"),
    "minutes-for-hours": (HEAD + "#SBATCH --time=24:00\n", HEAD + "#SBATCH --time=24:00:00\n"),
    "memory-twice": (HEAD + "#SBATCH --mem=0 --mem-per-cpu=4G\n", HEAD + "#SBATCH --mem=0 --mem-bind=local\n"),
    "gpus-twice": (HEAD + "#SBATCH --gres=gpu:a100:4\n", HEAD + "#SBATCH --gres=gpu:a100:8 --gpus=32\n"),
    "gpus-is-the-total": (
        "#!/bin/bash\n#SBATCH -N4 -G 2\n",
        "#!/bin/bash\n#SBATCH -N4 -G a100:32\n",
    ),
    "too-few-tasks": (
        "#!/bin/bash\n#SBATCH -N 4 --ntasks-per-node=8 --ntasks=8\nsrun python t.py\n",
        HEAD + "srun -N1 -n1 hostname\nsrun --ntasks=4 ./t.sh\n",
    ),
    "one-log-for-all-jobs": (HEAD + "#SBATCH --output=train.log\n", HEAD + "#SBATCH --output=/dev/null -e e-%j\n"),
    "one-log-for-an-array": (
        HEAD + "#SBATCH --array=0-3 --output=%x.log\n",
        HEAD + "#SBATCH --array=0-3 --output=%A_%2a.log\n",
    ),
    "mail-to-nobody": (HEAD + "#SBATCH --mail-user=a@b\n", HEAD + "#SBATCH --mail-user=a@b --mail-type=END\n"),
    "short-notice": (HEAD + "#SBATCH --signal=B:USR1@10\n", HEAD + "#SBATCH --signal=B:USR1@120\n"),
    "one-core-by-default": (
        HEAD + f"srun {TORCHRUN} t.py\n",
        HEAD + f"srun -c 64 {TORCHRUN} t.py\n",
    ),
    "old-option": (HEAD + "#SBATCH --workdir=/x\n", HEAD + "#SBATCH --chdir=/x\n"),
    "each-node-alone": (
        HEAD + "srun torchrun --standalone --nnodes=4 --nproc-per-node=8 t.py\n",
        HEAD.replace("--nodes=4", "--nodes=1") + "srun torchrun --standalone --nproc-per-node=8 t.py\n",
    ),
    "no-meeting-point": (
        HEAD + f"srun {TORCHRUN} --rdzv-backend=c10d t.py\n",
        HEAD + f"srun {TORCHRUN} --rdzv-backend=c10d --rdzv_endpoint=$MASTER_ADDR:29500 t.py\n",
    ),
    "every-node-is-node-0": (
        HEAD + f"srun {TORCHRUN} --master_addr=$A t.py\n",
        HEAD + f"srun {TORCHRUN} --master_addr=$A --node_rank=$R t.py\n",
    ),
    "master-addr-ignored": (
        HEAD + f"srun {TORCHRUN} --rdzv_backend c10d --master_addr $A t.py\n",
        HEAD + f"srun {TORCHRUN} --rdzv_backend static --node-rank=$R --master_addr $A t.py\n",
    ),
    "old-launcher": (
        HEAD + "srun python -m torch.distributed.launch t.py\n",
        HEAD + "srun python -m torch.distributed.run t.py\n",
    ),
    "deepspeed-finds-no-nodes": (HEAD + "deepspeed t.py\n", HEAD + "deepspeed --hostfile=hosts t.py\n"),
    "wrong-world-size": (HEAD + "export WORLD_SIZE=16\n", HEAD + "export WORLD_SIZE=32\n"),
    "fixed-rank": (HEAD + "export NODE_RANK=0\n", HEAD + "export NODE_RANK=$SLURM_NODEID MAX_RANK=0\n"),
    "more-tasks-than-gpus": (
        HEAD + "srun --ntasks-per-node=16 python train.py\n",
        HEAD + "srun --ntasks-per-node=8 python train.py\nsrun --ntasks-per-node=16 python count.py\n",
    ),
    "fewer-tasks-than-gpus": (
        HEAD + "srun --ntasks-per-node=4 python train.py\n",
        HEAD + "srun --ntasks-per-node=8 python train.py\n",
    ),
    "own-addresses-as-master": (
        HEAD + "MASTER_ADDR=$(hostname -I)\n",
        HEAD + "MASTER_ADDR=$(hostname -I | awk '{print $1}')\nhostname -i\n",
    ),
    "impossible-port": (
        HEAD + "MASTER_PORT=$((50000 + SLURM_JOB_ID % 20000))\n",
        HEAD + "MASTER_PORT=$((50000 + SLURM_JOB_ID % 10000))\n",
    ),
    "unknown-slurm-variable": (
        HEAD + "echo $SLURM_JOB_NUMNODES\n",
        HEAD + "SLURM_MINE=1\necho $SLURM_MINE ${SLURM_JOB_NUM_NODES} ${SLURM_RANK:-0}\n# $SLURM_Y\n",
    ),
    "variable-without-option": (
        "#!/bin/bash\n#SBATCH --gres=gpu:8\nsrun torchrun --nproc-per-node=$SLURM_GPUS_PER_NODE t.py\n",
        HEAD + "srun torchrun --nproc-per-node=$SLURM_GPUS_PER_NODE t.py --workers ${SLURM_CPUS_PER_TASK:-8}\n",
    ),
    "environment-cut-off": (
        HEAD + "srun --export=MASTER_ADDR=$A ./t\n",
        HEAD + "srun --export=ALL,MASTER_ADDR=$A ./t\n",
    ),
    "loopback-let-in": (
        HEAD + "export NCCL_SOCKET_IFNAME=^docker0\n",
        HEAD + "export NCCL_SOCKET_IFNAME=^docker0,lo\n",
    ),
    "pattern-for-gloo": (
        HEAD + "export GLOO_SOCKET_IFNAME=^lo,docker0\n",
        HEAD + "export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=^lo,docker0\n",
    ),
    "hangs-on-errors": (
        HEAD + "export TORCH_NCCL_ASYNC_ERROR_HANDLING=0\n",
        HEAD + "export TORCH_NCCL_ASYNC_ERROR_HANDLING=1\n",
    ),
    "renamed-variable": (
        HEAD + "export NCCL_BLOCKING_WAIT=1\n",
        HEAD + "export NCCL_BLOCKING_WAIT=1 TORCH_NCCL_BLOCKING_WAIT=1\n",
    ),
    "nccl-tuned-by-hand": (HEAD + "export NCCL_ALGO=Ring\n", HEAD + "export NCCL_DEBUG=WARN # NCCL_ALGO=Ring\n"),
    "path-replaced": (
        HEAD + "export LD_LIBRARY_PATH=/opt/lib\n",
        HEAD + "export LD_LIBRARY_PATH=/opt/lib:${LD_LIBRARY_PATH:-}\n",
    ),
    "background-without-wait": (HEAD + "wait\nsrun ./train.sh &\n", HEAD + "srun ./train.sh &\nwait $!\n"),
    "wait-cut-short": (
        HEAD + "trap 'kill -USR1 $pid' USR1\nsrun ./t &\npid=$!\nwait $pid\n",
        HEAD + "trap 'kill -USR1 $pid; wait $pid' USR1\nsrun ./t &\npid=$!\nwait $pid\n",
    ),
    "exit-code-forgotten": (
        HEAD + "srun python train.py\necho done\n",
        HEAD + "srun python train.py\ncode=$?\necho done\nexit $code\n",
    ),
    "requeue-on-any-failure": (
        HEAD + "srun ./t || scontrol requeue $SLURM_JOB_ID\n",
        HEAD + "[ ${SLURM_RESTART_COUNT:-0} -lt 3 ] && srun ./t || scontrol requeue $SLURM_JOB_ID\n",
    ),
    "steps-one-after-the-other": (
        HEAD + "srun -N2 ./a &\nsrun -N2 ./b &\nwait\n",
        HEAD + "srun -N2 --exact ./a &\nsrun -N2 --exact ./b &\nwait\n",
    ),
    "nodes-one-after-the-other": (
        HEAD + f"for n in $nodes; do\n  srun -N1 -w $n {TORCHRUN} t.py\ndone\n",
        HEAD + f"for n in $nodes; do\n  srun -N1 -w $n {TORCHRUN} t.py &\ndone\nwait\n",
    ),
    "terminal-in-batch": (HEAD + "srun --pty bash\n", HEAD + "srun bash --pty\n"),
    "allocation-in-job": (HEAD + "salloc -N2 srun ./t\n", HEAD + "# salloc -N2\necho salloc\n"),
    "container-without-gpus": (
        HEAD + "srun apptainer exec image.sif torchrun t.py\n",
        HEAD + "srun apptainer exec --nv image.sif torchrun t.py\n",
    ),
    "little-shared-memory": (
        HEAD + "srun docker run --gpus all image python t.py\n",
        HEAD + "srun docker run --gpus all --ipc=host image python t.py\ndocker pull image\n",
    ),
    "conda-without-hook": (
        HEAD + "conda activate train\n",
        HEAD + 'eval "$(conda shell.bash hook)"\nconda activate train\n',
    ),
    "installs-in-every-task": (HEAD + "srun pip install -r r.txt\n", HEAD + "srun pip list\npip install -r r.txt\n"),
    "checkpoint-on-local-disk": (
        HEAD + "srun python train.py --save_dir $TMPDIR/out\n",
        HEAD + "srun python train.py --save_dir out --cache_dir /tmp/x\n",
    ),
    "environment-of-one-node": (
        HEAD + "tar xf v.tar -C /tmp\nsource /tmp/venv/bin/activate\nsrun ./t\n",
        HEAD + "srun --ntasks-per-node=1 tar xf /tmp/venv/bin/activate\nsource /tmp/venv/bin/activate\nsrun ./t\n",
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


def test_there_are_enough_rules_and_each_has_one_name_and_one_case() -> None:
    assert len(RULES) >= 55
    assert sorted(rule.name for rule in RULES) == sorted(CASES)


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

    gpu = Gpu(name="a100", kind="cuda", memory_bytes=80 * 2**30, hbm_bytes_per_s=2e12, num_sms=108)
    cluster = Cluster("four", 2, node=Node(gpu, 4, domains=((0, 1, 2, 3),)))
    script = "#!/bin/bash\n#SBATCH --nodes=2\nsrun python t.py --tensor-parallel-size 8\n"
    assert "tp-over-node" not in names(script)
    assert "tp-over-node" in {finding.rule for finding in lint(script, cluster=cluster)}
