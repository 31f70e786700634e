"""Make README.md, the other pages at the root and the studies in results/ pages of the site (mkdocs.yml).

Links are written for GitHub, where a path is relative to the file. Here they are rewritten to the page's place on the
site. A link to a file that is not on the site, such as one in slm/, becomes text.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ADDED = ("*.md", "results/*/README.md", "results/**/*.png", "results/**/*.svg", "results/**/*.html")
IMAGE = re.compile(r"(?P<before>!\[(?P<label>[^\]]*)\]\()(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
LINK = re.compile(
    r"(?P<before>(?<!!)\[(?P<label>(?:!\[[^\]]*\]\([^)]*\)|[^\]])*)\]\()(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)"
)
ATTRIBUTE = re.compile(r'(?P<before>\b(?:src|srcset|href)=")(?P<path>[^"#:]+)(?P<anchor>#[^"]*)?"')
CODE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def place_on_site(path: str) -> str:
    """Return where a file of the repository is among the sources of the site."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def place_in_repository(source: str) -> str:
    """Return which file of the repository a source of the site is."""
    if source == "index.md":
        return "README.md"
    return f"docs/{source}" if (ROOT / "docs" / source).exists() else source


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that are not in docs/."""
    for pattern in ADDED:
        for path in sorted(ROOT.glob(pattern)):
            source = place_on_site(path.relative_to(ROOT).as_posix())
            files.append(File.generated(config, source, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page, except in blocks of code."""
    folder = dirname(place_in_repository(page.file.src_uri))

    def link(match: re.Match[str]) -> str:
        target = normpath(join(folder, match["path"]))
        place = files.get_file_from_path(place_on_site(target))
        if not place:  # an address, a mistake of which mkdocs warns, or a file that is not on the site
            return match["label"] if (ROOT / target).exists() else match[0]
        return f"{match['before']}{relpath(place.src_uri, dirname(page.file.src_uri) or '.')}{match['anchor'] or ''})"

    def attribute(match: re.Match[str]) -> str:
        place = files.get_file_from_path(place_on_site(normpath(join(folder, match["path"]))))
        if not place:
            return match[0]
        return f'{match["before"]}{place.url_relative_to(page.file)}{match["anchor"] or ""}"'

    parts = CODE.split(markdown)  # every second one is a block of code
    parts[::2] = [ATTRIBUTE.sub(attribute, LINK.sub(link, IMAGE.sub(link, part))) for part in parts[::2]]
    return "".join(parts)
