"""The HTML page of a comparison."""

from reuse_algos.compare.show.page.report import (
    FILE_TYPES,
    check_report_path,
    embedded_json,
    report_page,
    write_report,
)
from reuse_algos.compare.show.page.texts import headline

__all__ = ["FILE_TYPES", "check_report_path", "embedded_json", "headline", "report_page", "write_report"]
