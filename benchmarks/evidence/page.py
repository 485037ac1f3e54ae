"""docs/results.md, its figure and docs/limits.md from the rows of all plans, finished or not.

    python -m benchmarks.evidence.page

Sentences and tables are computed; what no row says is in page_text.md and limits_text.md. A page of partial rows says
how far its plans are and gives no verdict on contrasts whose seeds are not complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import interpretation
from benchmarks.common import DOCS
from benchmarks.evidence import claim2, claim3, figure, limits, variants
from benchmarks.evidence.findings import Study, study

PAGE = DOCS / "results.md"
TEXT = Path(__file__).with_name("page_text.md")
# in the order of the page
PLANS = ("fashion_mnist", "fashion_mnist_trades", "fashion_mnist_long", "cifar10_jpeg", "digits")
METHODS = "fashion_mnist_methods"  # of the third claim alone
VARIANTS = "variants"


def page(studies: Sequence[Study], methods: Study, tried: Study) -> str:
    """Return the page of the plans, of other known methods, and of the variants of SNS's term that were tried."""
    sensitivities = claim3.plans(studies, methods)
    parts = {
        "SHORT": [
            *interpretation.short(),
            *(line for one in studies for line in claim2.short(one)),
            *(line for one in sensitivities for line in claim3.short(one)),
            *variants.short(tried),
            "",
            *claim2.advice(studies),
        ],
        "CLAIM_2": (line for one in studies for line in claim2.section(one)),
        "CLAIM_3": (line for one in sensitivities for line in claim3.section(one)),
        "VARIANTS": variants.section(tried),
        "UNFINISHED": unfinished([*studies, methods, tried]),
    }
    text = TEXT.read_text()
    for name, lines in parts.items():
        assert f"{{{name}}}" in text, name
        text = text.replace(f"{{{name}}}", "\n".join(lines).rstrip())
    return text


def unfinished(studies: Sequence[Study]) -> Iterator[str]:
    """Yield every started run that did not finish."""
    odd = [(one.plan["title"], row) for one in studies for row in one.rows if row["status"] != "finished"]
    yield from (f"## Started, not finished: {len(odd)}", "")
    for title, row in odd:
        yield f"* {title}: {row['title']}: {row.get('reason', 'started')}"


if __name__ == "__main__":
    studies = [study(name) for name in PLANS]
    methods = study(METHODS)
    PAGE.write_text(page(studies, methods, study(VARIANTS)))
    limits.PAGE.write_text(limits.page(*studies, methods))
    figure.write(studies)
