"""Tools for all reports: Markdown, HTML and the style of figures."""
