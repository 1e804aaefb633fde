"""Measuring: quality, time, memory and energy, and the statistics that make figures of them."""
