"""Result records in, a report out: HTML for a person, Markdown for a wiki, CSV for a spreadsheet."""

from carryover.transfer.report.watch import watch
from carryover.transfer.report.write import FORMATS, Report, write_report

__all__ = ["FORMATS", "Report", "watch", "write_report"]
