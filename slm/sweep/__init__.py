"""Sweeps: design a grid of runs, train and evaluate them as jobs, and pass the table of runs to the analysis.

No module of this package imports training code or torch.
"""
