"""MAG-Edit: its control, the loop on a step's latent, its constraints and their curve."""
