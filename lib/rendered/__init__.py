"""The rendered dataset: hand, motion, cameras and pictures, made by this project alone.

"Spec" in its docstrings is the brief that it was written to, which is not part of this repository.
"""
