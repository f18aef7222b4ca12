"""The rendezvous of a job's nodes, in the plan's order."""
