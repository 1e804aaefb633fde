"""Which layers stay precise: what each costs when made coarse, and the plan that follows."""
