"""Has the name of a module of the standard library, as many a script's neighbour does."""

RATE = 7
