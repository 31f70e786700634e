"""Turn a report in Markdown into one HTML file that contains its styles, scripts and figures, and loads nothing.

The first sections are open. Each further section is folded below its heading; printing, a link to it and the button
above the contents open it. Without scripts the page shows the same text and the static figures.
"""

import base64
import html
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from slm.report.formulas import typeset
from slm.report.markdown import LIGHTS

_VALUE = re.compile(r"(?:(?<=\d) )?\[[^\s\[\]]+, [^\s\[\]]+\]|(?<=\d) ± (?=\d)|(?<=\d) (?=(?:s|min|h|MB|GB)\b)")
"""A value with its interval, `1.2 [1, 3]`, its error, `1.2 ± 0.1`, or its unit, `1.2 s`; no line may break inside."""
_MIME_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
_NEVER = re.compile(r"(?!)")  # matches nothing


def html_page(
    title: str,
    markdown: str,
    folder: Path,
    fragments: Mapping[str, str] | None = None,
    *,
    head: str = "",
    formulas: Collection[str] = (),
    num_open: int = 1,
) -> str:
    """Return the HTML file; figures are read from `folder`. An SVG is preferred to a PNG of the same name.

    `fragments` maps the file stem of a figure to HTML that replaces the figure on a screen with scripts; the figure
    remains for print and for readers without scripts. `head` is HTML that the fragments need, such as a `<script>`.
    `formulas` are typeset wherever they occur in the text. The first `num_open` sections are not folded.
    """
    parser = _parser(folder, fragments or {}, formulas)
    tokens = parser.parse(markdown)
    _prepare_tables(tokens)
    _unwrap_figures(tokens)
    starts = [i for i, token in enumerate(tokens) if (token.type, token.tag) == ("heading_open", "h2")]
    links, body = [], [parser.renderer.render(tokens[: starts[0] if starts else None], parser.options, {})]
    for number, (start, end) in enumerate(pairwise([*starts, len(tokens)])):
        heading, content = (
            parser.renderer.render(part, parser.options, {})
            for part in (tokens[start : start + 3], tokens[start + 3 : end])
        )
        text = tokens[start + 1].content
        anchor = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
        links.append(f'<li><a href="#{anchor}">{html.escape(text)}</a></li>')
        body.append(_section(anchor, heading, content, is_open=number < num_open))
    here = Path(__file__)
    style, script = (here.with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    contents = "\n".join(links)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n<script>{script}</script>\n{head}</head>\n<body>\n"
        '<nav aria-label="Contents"><button type="button" id="open-all">Open all sections</button>\n'
        f"<ul>\n{contents}\n</ul></nav>\n<main>\n{''.join(body)}</main>\n</body>\n</html>\n"
    )


def _section(anchor: str, heading: str, content: str, *, is_open: bool) -> str:
    if is_open:
        return f'<section id="{anchor}">\n{heading}{content}</section>\n'
    # A browser opens a fold for a link to something inside it, so the anchor is inside.
    fold = f"<summary>{heading.strip()}</summary>\n"
    return f'<details class="section">{fold}<section id="{anchor}">\n{content}</section></details>\n'


def _parser(folder: Path, fragments: Mapping[str, str], formulas: Collection[str]) -> Any:
    from markdown_it import MarkdownIt

    longest_first = sorted(formulas, key=len, reverse=True)
    names = "|".join(map(re.escape, longest_first))
    formula = re.compile(rf"(?<![\w^])({names})(?![\w^])") if names else _NEVER

    def text(_self: Any, tokens: Sequence[Any], index: int, _options: Any, _env: Any) -> str:
        parts = formula.split(tokens[index].content)  # every second part is a formula
        return "".join(typeset(part) if i % 2 else _plain(part) for i, part in enumerate(parts))

    def image(_self: Any, tokens: Sequence[Any], index: int, _options: Any, _env: Any) -> str:
        path = folder / str(tokens[index].attrs["src"])
        picture = f'<img alt="{html.escape(tokens[index].content)}" src="{_data_uri(path)}">'
        if path.stem not in fragments:
            return f'<div class="figure">{picture}</div>\n'
        interactive = f'<div class="interactive">{fragments[path.stem]}</div>\n'
        return f'{interactive}<div class="figure static">{picture}</div>\n'

    # HTML must pass unescaped, because reports contain <details>. Users' text is escaped when the Markdown is written.
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    parser.add_render_rule("text", text)
    parser.add_render_rule("image", image)
    parser.add_render_rule("table_open", lambda *_: '<div class="scroll" tabindex="0"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return parser


def _plain(text: str) -> str:
    """Return text as HTML; no line breaks within a value with its interval or error."""
    return _VALUE.sub(lambda match: match[0].replace(" ", "&nbsp;"), html.escape(text))


def _data_uri(path: Path) -> str:
    """Return an image as a data URI. Ids inside an SVG then cannot clash with the ids of other figures."""
    path = next(candidate for candidate in (path.with_suffix(".svg"), path) if candidate.exists())
    if path.suffix == ".svg" and "'" not in (text := path.read_text(encoding="utf-8")):
        text = " ".join(text.split()).replace("%", "%25").replace("#", "%23").replace('"', "'")
        return f"data:image/svg+xml,{html.escape(text, quote=False)}"  # three quarters of the size of base64
    return f"data:{_MIME_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _prepare_tables(tokens: Sequence[Any]) -> None:
    """Give each cell the heading of its column, which narrow screens show beside it, and each light its class."""
    headings: list[str] = []
    column = 0
    for index, token in enumerate(tokens):
        if token.type == "thead_open":
            headings = []
        elif token.type == "th_open":
            headings.append("".join(child.content for child in tokens[index + 1].children))
        elif token.type == "tr_open":
            column = 0
        elif token.type == "td_open":
            token.attrSet("data-label", headings[column])
            column += 1
            if (light := LIGHTS.get(tokens[index + 1].content)) is not None:
                token.attrSet("class", f"light {light}")
                (word,) = tokens[index + 1].children
                word.type, word.content = "html_inline", f'<span class="dot"></span>{light}'


def _unwrap_figures(tokens: Sequence[Any]) -> None:
    """Take figures out of their paragraphs, because a paragraph cannot contain the blocks of a fragment."""
    for index, token in enumerate(tokens):
        if token.type == "inline" and [child.type for child in token.children] == ["image"]:
            tokens[index - 1].hidden = tokens[index + 1].hidden = True
