"""What makes a start faster: a warm server, and torch imported while the plan is made."""
