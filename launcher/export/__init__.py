"""A plan in other tools' terms."""
