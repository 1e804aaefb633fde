"""Training of the arms: the schedule of three phases, the loop, its telemetry, its checkpoints."""
