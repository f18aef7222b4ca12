"""What must be true of a node before a job starts there."""
