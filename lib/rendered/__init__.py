"""The rendered dataset: hand, motion, cameras and pictures, made by this project alone (spec: rendered dataset)."""
