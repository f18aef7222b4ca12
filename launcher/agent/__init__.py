"""One node's agent: the fork server, ranks, their output, health and failures."""
