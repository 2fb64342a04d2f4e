"""Trajectories of real images: how they are made, kept and checked."""
