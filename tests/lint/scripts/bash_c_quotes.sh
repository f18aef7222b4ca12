#!/bin/bash
set -euo pipefail
#SBATCH --nodes=8
#SBATCH --gres=gpu:8
#SBATCH --ntasks-per-node=1
export NCCL_SOCKET_IFNAME=lo
export NCCL_P2P_DISABLE=1
srun bash -c '
  export MASTER_ADDR=$(hostname)
  export MASTER_PORT=$RANDOM
  export CUDA_VISIBLE_DEVICES=0,1,2,3
  torchrun --nnodes=$SLURM_NNODES --node-rank=$SLURM_NODEID --nproc-per-node=4 train.py
'
