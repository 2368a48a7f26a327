"""What an iteration takes on the devices at hand, and on hardware that is not: compiled, never run."""
