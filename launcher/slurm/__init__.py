"""Slurm: plan → one sbatch command; inside the job, placement and one agent per node; then status, logs, cancel.

settings   the site's keys of `launch.*`
request    plan + settings → the exact command (pure)
submit     writes the run folder, prints or runs the command
job        what the batch script runs: placement, agents, requeue
life       status, logs, cancel
"""
