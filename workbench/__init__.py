"""Ternary Workbench: pilots that tell whether ternary language models pay off here.

Data flows one way, and so do imports:
pilot, records -> load -> data -> model, ternary -> train -> engine -> measure
-> hybrid -> serve -> report -> runner -> cli.
"""

__version__ = "0.1.0"
