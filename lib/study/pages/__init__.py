"""Pages that show tracked recordings to people."""
