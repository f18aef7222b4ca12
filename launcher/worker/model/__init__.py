"""The transformer that the recipes train, split over tensor-parallel ranks."""
