"""Power logs that others wrote, read afterwards: ``workbench meter import``."""
