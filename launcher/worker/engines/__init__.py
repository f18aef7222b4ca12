"""The two training engines: torch and DeepSpeed."""
