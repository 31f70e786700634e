"""Helpers that every program needs: command line, machine, files, settings, progress, words."""
