"""Draw the figures and write the report of an analysis directory, using only its files."""
