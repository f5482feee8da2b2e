"""What the book needs of Sphinx: pages drawn from data, terms linked where first used.

`{zolab} ledger|status|map|counts` is replaced by what zolab.lab.pages draws. A chapter
names a term of the glossary in plain words, and its first use on a page becomes a link:
a notebook stays readable in JupyterLab, which knows no roles.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

from zolab.lab import pages

DRAWN = {
    "ledger": pages.ledger_page,
    "status": pages.status_page,
    "map": pages.chapter_map,
    "counts": pages.counts,
}
QUIET = (nodes.literal, nodes.title, nodes.reference, nodes.math, nodes.raw)
QUIET += (nodes.literal_block, addnodes.pending_xref)


class Drawn(SphinxDirective):
    """{zolab} NAME: the HTML that zolab.lab.pages draws now."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # data may change while the page's text does not
        html = DRAWN[self.arguments[0]]()
        return [nodes.raw("", html, format="html")]


class LinkTerms(SphinxPostTransform):
    """The first use of each glossary term on a chapter's page links to it."""

    default_priority = 5  # before references are resolved

    def run(self, **_: object) -> None:
        page = self.env.docname
        if not page.startswith("notebooks/"):
            return
        terms = self.env.get_domain("std").objects
        waiting = {t.lower(): t for kind, t in terms if kind == "term"}
        for text in list(self.document.findall(nodes.Text)):
            if not waiting or _is_quiet(text):
                continue
            if parts := self._linked(text.astext(), waiting):
                text.parent.replace(text, parts)

    def _linked(self, text: str, waiting: dict[str, str]) -> list[nodes.Node]:
        """The text with its first waiting term as a link, and the rest likewise."""
        longest = sorted(waiting, key=len, reverse=True)
        words = "|".join(re.escape(t) for t in longest)
        found = re.search(rf"\b({words})(?:s|es)?\b", text, re.I) if words else None
        if found is None:
            return []
        term = waiting.pop(found[1].lower())
        target = addnodes.pending_xref(
            "", refdomain="std", reftype="term", reftarget=term, refwarn=True,
            refexplicit=True, refdoc=self.env.docname,
        )  # fmt: skip
        target += nodes.inline(found[0], found[0], classes=["xref", "std-term"])
        rest = text[found.end() :]
        after = self._linked(rest, waiting) or [nodes.Text(rest)]
        return [nodes.Text(text[: found.start()]), target, *after]


def _is_quiet(text: nodes.Text) -> bool:
    node = text.parent
    while node is not None:
        if isinstance(node, QUIET) or "cell" in node.get("classes", ()):
            return True
        node = node.parent
    return False


def _one_script_once(app: Sphinx, page: str, template: str, context, doctree) -> None:
    """Jupyter Book loads a script for live code, twice, which a browser refuses."""
    files = context.get("script_files", [])
    context["script_files"] = [
        f for f in files if "THEBE" not in str(getattr(f, "attributes", "")) + str(f)
    ]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("zolab", Drawn)
    app.add_post_transform(LinkTerms)
    app.add_css_file("zolab.css")
    app.add_js_file("cards.js")
    app.add_js_file("phone.js")
    app.connect("html-page-context", _one_script_once, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
