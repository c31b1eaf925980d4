"""What a notebook says of what it saves, for the page: its first and last words, and those above a cell that saves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from nslib.runtime import checkout

_SAVED = re.compile(r'record\.(?:table|figure|pictures)\(\s*f?"([^"]+)"')
_FIGURES = re.compile(r"\[([^]]+)\]\(\.\./figures/[^)]*\)")  # a link to results, from where the notebooks lie
_FILLED = re.compile(r"\{[^}]*\}")  # in the name of one of several figures


@dataclass(frozen=True)
class Note:
    """A text of a notebook as HTML, and the heading under which it stands."""

    heading: str
    html: str


@dataclass(frozen=True)
class Notes:
    """The texts that open and close a notebook, as HTML, and those above what it saves, by a pattern of its name in
    words."""

    opening: str = ""
    closing: str = ""  # empty where it ends with code or a heading
    saved: tuple[tuple[re.Pattern[str], Note], ...] = ()

    def place(self, name: str) -> int:
        """Where in the notebook this is saved, among all that is; what the notebook of now does not save comes last."""
        places = (i for i, (pattern, _) in enumerate(self.saved) if pattern.fullmatch(name))
        return next(places, len(self.saved))

    def of(self, name: str) -> Note | None:
        """The text above what is saved under this name; None of what the notebook of now does not save."""
        place = self.place(name)
        return self.saved[place][1] if place < len(self.saved) else None


@cache
def notes_of(notebook: str) -> Notes:
    """The texts of a notebook of the checkout; none of any other, and none outside a checkout."""
    repository = checkout()
    path = repository and repository / "paper_nb" / f"{notebook}.py"
    if not path or not path.is_file():
        return Notes()
    import jupytext  # this takes a while, which only a report needs
    from markdown_it import MarkdownIt

    html = MarkdownIt("commonmark").render
    heading, opening, above, closing, saved = "", "", "", "", []
    for cell in jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent").cells:
        closing = ""
        if cell.cell_type == "markdown":
            title, text = _parted(cell.source)
            heading, above = title or heading, html(_FIGURES.sub(r"`\1`", text))
            closing = "" if title else above
            opening = opening or above
        for name in _SAVED.findall(cell.source) if cell.cell_type == "code" else ():
            pattern = ".*".join(re.escape(part.replace("_", " ")) for part in _FILLED.split(name))
            saved.append((re.compile(pattern), Note(heading, above)))
    return Notes(opening, closing, tuple(saved))


def _parted(text: str) -> tuple[str, str]:
    """A heading of any level, empty if there is none, and the text below it."""
    first, _, rest = text.partition("\n")
    return (first.lstrip("#").strip(), rest) if first.startswith("#") else ("", text)
