"""Figures and report of an analysis directory, from its files alone."""
