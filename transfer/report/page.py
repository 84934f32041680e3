"""The report as one self-contained HTML page: no network, no second file."""

import base64
import hashlib
import re
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from carryover.configs.counted import signed
from carryover.transfer.report.content import Content, Pictures
from carryover.transfer.report.figures import figure_note
from carryover.transfer.report.findings import spread_note
from carryover.transfer.report.listing import FIRST, build_listing, carried, packed
from carryover.transfer.report.savings import SAVINGS_NOTE
from carryover.transfer.report.tables import reproductions

_SUBSCRIPT = re.compile(r"^(AP)(50|75|s|m|l)$")


def page(content: Content, pictures: Pictures, out: Path) -> str:
    """Return the page; every cell leads to its records, listed below with checkpoint, recipe and versions.

    `out` is the directory the page will lie in: links to records are relative to it. The page's own policy
    forbids it to load anything and to run any script but the two it carries.
    """
    scripts = [_asset("first.js"), _asset("page.js")]
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{d}'" for d in digests)
    environment = Environment(
        loader=PackageLoader("carryover.transfer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["subscript"] = _subscript
    environment.filters["signed"] = signed
    listing = build_listing(content.collection, out)
    return environment.get_template("page.html.j2").render(
        content=content,
        pictures=pictures,
        style=Markup(_asset("page.css")),
        scripts=[Markup(s) for s in scripts],
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}",
        listing=listing,
        data=Markup(packed(listing)),
        carried=carried,
        first=FIRST,
        svg=Markup,
        reproductions=reproductions,
        figure_note=figure_note,
        spread_note=spread_note,
        savings_note=SAVINGS_NOTE,
    )


def _asset(name: str) -> str:
    return (resources.files("carryover.transfer.report") / "templates" / name).read_text(encoding="utf-8")


def _subscript(metric: str) -> Markup:
    """Print AP50 with its threshold set low, as papers do."""
    if match := _SUBSCRIPT.match(metric):
        return Markup("{}<sub>{}</sub>").format(*match.groups())
    return escape(metric)
