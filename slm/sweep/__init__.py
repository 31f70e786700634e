"""Sweeps: designing a grid of runs, training and evaluating them as jobs, and handing their table to the analysis.

No module of it imports training code or torch.
"""
