"""Evaluate checkpoints: perplexity by stated protocols, speed and memory, tasks, and a report that compares them."""
