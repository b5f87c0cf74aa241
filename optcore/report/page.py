"""The report as one HTML file that loads nothing from anywhere."""

from optcore.report.model import Report


def render_page(report: Report) -> str:
    """Self-contained HTML with inline SVG plots, for light and dark screens."""
    raise NotImplementedError
