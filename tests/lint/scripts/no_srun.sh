#SBATCH --job-name=$USER-train
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --gpu-bind=closest
#SBATCH --export=NONE
export RDZV_HOST=$(hostname)
torchrun --nnodes=2 --nproc_per_node=8 --rdzv-endpoint=127.0.0.1:29400 train.py --tp 8
srun nvidia-smi
