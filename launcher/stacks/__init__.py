"""What a training software does, as frozen values with their sources."""
