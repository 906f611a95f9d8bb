"""What a checkpoint should hold, whether it does, and what it takes, from the configurations alone."""
