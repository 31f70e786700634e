"""Checkpoints measured: perplexity by stated protocols, speed and memory, tasks, and a report of several."""
