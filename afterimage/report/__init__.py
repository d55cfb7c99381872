"""Reports of a run: its page, its notebook view, and comparisons of runs."""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage.report.chart import calibration_chart as calibration_chart
    from afterimage.report.chart import line_chart as line_chart
    from afterimage.report.chart import scatter_chart as scatter_chart
    from afterimage.report.page import logged as logged
    from afterimage.report.page import notebook as notebook
    from afterimage.report.page import write_report as write_report
    from afterimage.report.parts import Diagram as Diagram
    from afterimage.report.parts import Figure as Figure
    from afterimage.report.parts import Gallery as Gallery
    from afterimage.report.parts import Matrix as Matrix
    from afterimage.report.parts import Table as Table
    from afterimage.report.parts import Tile as Tile
    from afterimage.report.records import RunRecord as RunRecord
    from afterimage.report.records import comparison as comparison
    from afterimage.report.records import comparison_text as comparison_text
    from afterimage.report.records import read_run as read_run
    from afterimage.report.records import run_html as run_html
    from afterimage.report.records import write_comparison as write_comparison

__getattr__, __dir__ = exports(__name__, __file__)
