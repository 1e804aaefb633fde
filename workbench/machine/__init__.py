"""Facts about the machine: processor, memory, GPUs, compiler, versions. Nothing is timed here."""
