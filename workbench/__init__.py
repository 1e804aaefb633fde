"""Ternary Workbench: pilots that tell whether ternary language models pay off here.

Data flows one way, and so do imports; docs/design.md gives the order.
"""

import os

# OpenMP's threads spin while they wait, which starves everybody on a busy machine: training a
# small model took 3.6 times as long there (docs/log.md). Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.3.0"
