"""Plan → argv and environment, and the places where ranks start: this machine, Slurm."""
