"""The drawings of the study."""
