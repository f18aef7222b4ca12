"""What a rank measures and where it reports it."""
