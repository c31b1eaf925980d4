"""Executed notebooks as HTML pages beside them, for readers without Jupyter."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from nslib.runtime import checkout, quiet, runs_path, write_text

# nbconvert's page without RequireJS, MathJax, Mermaid and widgets, which it would load from elsewhere.
_TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block footer_js %}{% endblock %}
"""


def executed_pages(run_name: str) -> dict[str, Path]:
    """Write `runs/<run name>/<notebook>.html` for every executed notebook there, and tell where each lies.

    Figures and styles are inside the file and it runs no script: formulas are not typeset and widgets do not live;
    the notebooks have neither. A page that is younger than its notebook stays.

    Raises:
        ValueError: an executed notebook is damaged; names it.
    """
    sources = [p for p in sorted(runs_path(run_name).glob("[0-9]*.ipynb")) if ".partial" not in p.name]
    pages = {path.stem: path.with_suffix(".html") for path in sources}
    for path in sources:
        page = pages[path.stem]
        if not page.is_file() or page.stat().st_mtime < path.stat().st_mtime:
            write_text(page, _convert(path))
    return pages


def heading_anchor(heading: str) -> str:
    """The part after # in the address of a heading of such a page."""
    return quote(heading.replace(" ", "-"), safe="?/:@!$&'()*+,;=")  # as nbconvert makes them


def _convert(path: Path) -> str:
    import nbformat  # these take half a second, which only a report needs
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    try:
        notebook = nbformat.read(path, as_version=4)
    except (ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise ValueError(f"{path} cannot be read as a notebook ({error}): run it again") from error
    home = os.path.relpath(checkout() or Path.cwd(), path.parent).replace(os.sep, "/")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":  # its links start from the folder of the notebooks
            cell.source = cell.source.replace("](../", f"]({home}/")
    exporter = HTMLExporter(extra_loaders=[DictLoader({"page.html.j2": _TEMPLATE})], template_file="page.html.j2")
    with quiet("traitlets"):  # it would remind the authors of notebooks of alternative texts, on stderr
        return exporter.from_notebook_node(notebook, resources={"metadata": {"name": path.stem}})[0]
