"""Sweeps: design a grid of runs, train and evaluate them as jobs, and analyse them. Nothing here imports torch."""
