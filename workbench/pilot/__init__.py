"""The pilot file: its sections, how it is read, checked and resolved."""
