"""Read a table of runs, audit it, fit laws, compare families, draw figures and write a report."""
