"""The before/after report: reads the artifacts of a run and writes one self-contained page."""

from whelp.report.collect import before_after
from whelp.report.render import write_report

__all__ = ["before_after", "write_report"]
