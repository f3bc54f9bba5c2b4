"""What makes the tables and figures of the study. Only the command line imports it."""
