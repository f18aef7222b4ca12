#!/bin/sh
#SBATCH -N1 -n1 -c64 -G 8
#SBATCH --gpus-per-node 8
#SBATCH -t 60
#SBATCH --signal=USR1@60
export OMP_NUM_THREADS=8
torchrun --standalone --nproc_per_node=8 train.py --tensor-model-parallel-size 8 --data /scratch/$USER/data
