"""The page of a retraining, without the picture, which test_plots.py draws."""

from pathlib import Path

from lmcore.report.retraining_report import retraining_page
from lmcore.settings.retraining import RetrainConfig
from tests.conftest import Prepared


def test_a_source_in_a_reason_and_the_folder_of_the_run_are_no_markup(prepared: Prepared) -> None:
    verdict = "refused: old text of <b>*web*</b>: +0.2 bits per byte"
    page = retraining_page(RetrainConfig(), verdict, None, prepared.dataset, None, run_folder=Path("a`b"))
    assert "# lm: refused\n\nold text of \\<b\\>\\*web\\*\\</b\\>: +0.2 bits per byte\n" in page
    assert page.endswith("``a`b``\n")
