"""Hands in a stream of pictures, without labels: they are detected, followed, lost and found again."""
