"""How many observations an interval needs; apart, so that asking a meter imports no statistics."""

from __future__ import annotations

FEWEST_DOCUMENTS = 64
"""Of fewer documents with heavy tails no method tried keeps its level (docs/measuring.md)."""
FEWEST_BLOCKS = 6
"""Of fewer blocks, Student's t spans several times the figure as soon as one was disturbed."""
