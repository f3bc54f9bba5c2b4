"""The formats in which recordings, hands and calibrations come, and what every reader checks."""
