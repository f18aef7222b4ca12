"""Where the nodes of a job meet, in the plan's order."""
