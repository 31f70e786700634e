"""Check and interpret a composed train config without torch: its keys, kinds of values, shape and budget."""
