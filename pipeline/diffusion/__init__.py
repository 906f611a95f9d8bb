"""The diffusion mathematics: schedules, spacings, predictions, guidance, noise, solvers."""
