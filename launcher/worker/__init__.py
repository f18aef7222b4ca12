"""Inside a rank: process groups, device mesh, engines, checkpoints, tracking."""
