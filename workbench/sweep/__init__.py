"""Many runs of one pilot with other values: here, on Ray or as a Slurm array."""
