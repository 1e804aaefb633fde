"""Fleets on paper: replicas simulated by the scheduler's own rules, from measured costs."""
