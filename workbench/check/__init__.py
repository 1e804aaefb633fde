"""Proof on a file that a model is ternary: ``workbench check``."""
