"""What a run leaves to be looked at: its page, its notebook form, several runs."""

from afterimage.report.chart import line_chart
from afterimage.report.page import logged, notebook, write_report
from afterimage.report.records import (
    RunRecord,
    comparison,
    comparison_text,
    read_run,
    run_html,
    write_comparison,
)

__all__ = [
    "RunRecord",
    "comparison",
    "comparison_text",
    "line_chart",
    "logged",
    "notebook",
    "read_run",
    "run_html",
    "write_comparison",
    "write_report",
]
