"""A module of the user's that has the product's name."""

NAME = "the user's own"
