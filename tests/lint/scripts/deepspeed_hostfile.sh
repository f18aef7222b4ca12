#!/usr/bin/env bash
#SBATCH -J ds-ft
#SBATCH -N 2
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:a100:8
#SBATCH -t 1-00:00:00
#SBATCH --output=logs/%j.out
#SBATCH --requeue

mkdir -p logs
export MASTER_ADDR=$(echo $SLURM_JOB_NODELIST | cut -d, -f1)
export MASTER_PORT=$((RANDOM % 10000 + 20000))
export OMP_NUM_THREADS=1
export HF_TOKEN=hf_abcdefghijklmnopqrstuvwxyz012345

for host in $(scontrol show hostnames); do
  echo "$host slots=8" >> hostfile.$SLURM_JOB_ID
done

srun deepspeed --hostfile hostfile.$SLURM_JOB_ID --master_addr $MASTER_ADDR --master_port=$MASTER_PORT \
    --num_gpus 8 finetune.py --deepspeed ds_config.json
