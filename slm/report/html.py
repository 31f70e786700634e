"""Turn a report in Markdown into one HTML file that contains its styles and figures, and no script."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2125; --paper: #ffffff; --soft: #f4f5f7; --line: #d9dde2; --link: #0b5cad;
  --quiet: #5b6570; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --paper: #16191d; --soft: #1f242a; --line: #363d45;
  --link: #7ab7f5; --quiet: #a3adb8; } }
* { box-sizing: border-box; } html { scroll-padding-top: 1rem; }
body { margin: 0; color: var(--ink); background: var(--paper); font: 16px/1.55 system-ui, sans-serif;
  display: grid; grid-template-columns: 15rem minmax(0, 58rem); gap: 2.5rem; justify-content: center; }
nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow-y: auto; padding: 1.6rem 0 1.6rem 1rem;
  font-size: .875rem; }
nav ul { list-style: none; margin: 0; padding: 0; } main { padding: 1rem 1rem 4rem; }
nav a { display: block; padding: .22rem 0; color: var(--quiet); text-decoration: none; }
nav a:hover { color: var(--link); text-decoration: underline; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .6rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
a { color: var(--link); } code { background: var(--soft); padding: .08em .3em; border-radius: 3px; font-size: .9em; }
pre { background: var(--soft); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; }
pre code { padding: 0; background: none; }
.scroll { width: fit-content; max-width: 100%; overflow-x: auto; margin: .8rem 0;
  border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .7rem; text-align: left; vertical-align: top; min-width: 3.5rem; }
th { background: var(--soft); font-weight: 600; }
td { border-top: 1px solid var(--line); } td[style*="right"] { white-space: nowrap; }
details { margin: .7rem 0; } summary { cursor: pointer; color: var(--link); }
.figure { display: block; width: fit-content; max-width: 100%; overflow-x: auto; background: #fff; padding: .4rem;
  border: 1px solid var(--line); border-radius: 6px; margin-top: 1.2rem; }
img { display: block; max-width: 100%; height: auto; } p > em:only-child { color: var(--quiet); font-size: .9rem; }
#verdict + p { background: var(--soft); border-left: 4px solid #0072B2; padding: .8rem 1rem; font-size: 1.08rem; }
@media (max-width: 60rem) {
  html { scroll-padding-top: 3.2rem; } body { display: block; } main { padding: 0 1rem 3rem; }
  nav { top: 0; z-index: 1; background: var(--paper); border-bottom: 1px solid var(--line); padding: .5rem 1rem;
    overflow-x: auto; }
  nav ul { display: flex; gap: 1.1rem; white-space: nowrap; } img { max-width: none; width: max(100%, 38rem); }
}
@media print { nav { display: none; } body { display: block; } }
"""
_INTERVAL = re.compile(r"(?:(?<=\d)( ))?\[(-?[\w.-]+), (-?[\w.-]+)\]")  # "1.2 [1, 3]", where no line may break
_MIME_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


def html_page(title: str, markdown: str, folder: Path) -> str:
    """Return the HTML file; figures are read from `folder`. An SVG is preferred to a PNG of the same name."""
    parser = _parser(folder)
    tokens = parser.parse(markdown)
    headings = _add_anchors(tokens)
    body = parser.renderer.render(tokens, parser.options, {})
    body = _INTERVAL.sub(lambda match: match[0].replace(" ", "&nbsp;"), body)
    links = "\n".join(f'<li><a href="#{anchor}">{html.escape(text)}</a></li>' for anchor, text in headings)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<nav aria-label="Contents"><ul>\n{links}\n</ul></nav>\n<main>\n{body}</main>\n</body>\n</html>\n'
    )


def _parser(folder: Path) -> Any:
    from markdown_it import MarkdownIt

    def image(_self: Any, tokens: Sequence[Any], index: int, _options: Any, _env: Any) -> str:
        path = folder / str(tokens[index].attrs["src"])
        return f'<span class="figure"><img alt="{html.escape(tokens[index].content)}" src="{_data_uri(path)}"></span>'

    # HTML must pass unescaped, because reports contain <details>. Users' text is escaped when the Markdown is written.
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    parser.add_render_rule("image", image)
    parser.add_render_rule("table_open", lambda *_: '<div class="scroll" tabindex="0"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return parser


def _data_uri(path: Path) -> str:
    """Return an image as a data URI. Ids inside an SVG then cannot clash with the ids of other figures."""
    path = next(candidate for candidate in (path.with_suffix(".svg"), path) if candidate.exists())
    return f"data:{_MIME_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _add_anchors(tokens: Sequence[Any]) -> list[tuple[str, str]]:
    """Give every second-level heading an id; returns each id with the text of its heading."""
    headings = []
    for index, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h2":
            text = tokens[index + 1].content
            anchor = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
            token.attrSet("id", anchor)
            headings.append((anchor, text))
    return headings
