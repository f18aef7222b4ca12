"""What a person sees of plans and runs."""
