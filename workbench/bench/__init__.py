"""Benchmarks: `workbench bench cpu`, rows as data with the roofline beside each."""
