"""Tables of runs: read, checked, in canonical columns. See docs/tables.md."""

from slm.scaling.tables.table import Table, read_table, table_from_frame

__all__ = ["Table", "read_table", "table_from_frame"]
