"""One table of runs: read, audited, fitted, compared, drawn, reported."""
