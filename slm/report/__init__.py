"""The kit of every report: Markdown, HTML and the style of figures."""
