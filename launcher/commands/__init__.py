"""One module a command: reads its input, calls the rooms that do the work, prints."""
