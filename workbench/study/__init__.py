"""Studies: several trainings of one pilot, each done once, compared on the same documents."""
