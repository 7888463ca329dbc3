"""The HTML pages: of a comparison, and of any other answer in the same look."""

from reuse_algos.compare.show.page.document import embedded_json, write_report
from reuse_algos.compare.show.page.report import report_page
from reuse_algos.compare.show.page.sheet import Part, sheet_page
from reuse_algos.compare.show.page.texts import headline

__all__ = ["Part", "embedded_json", "headline", "report_page", "sheet_page", "write_report"]
