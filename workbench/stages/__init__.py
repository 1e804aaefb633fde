"""The stages as short scripts, the keys that tell when one is finished, and their executor."""
