"""Slurm: plan → one sbatch command; inside the job, placement and one agent a node; afterwards status, logs, cancel.

settings   the keys of `launch.*` that a site needs
request    plan + settings → the exact command (pure)
submit     writes the run folder, shows or runs the command
job        what the batch script runs: placement, agents, requeue
life       status, logs, cancel
"""
