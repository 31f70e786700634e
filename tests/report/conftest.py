from tests.report.browser import browser

__all__ = ["browser"]
