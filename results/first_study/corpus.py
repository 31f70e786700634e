"""The text of the first study: 41 MB of English technical documentation out of three Debian packages.

    python results/first_study/corpus.py DIR        writes DIR/manuals.jsonl, a document a manual page or chapter

Needs apt-get and dpkg-deb (Debian 12 or a container of it). Another point release has slightly another text; the
fingerprint that every run prints and results.csv holds says whether it is the one of the study.
"""

import argparse
import gzip
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

PACKAGES = {
    "linux-doc-6.1": ("usr/share/doc/linux-doc-6.1/Documentation", "**/*.rst.gz"),
    "python3.11-doc": ("usr/share/doc/python3.11/html/_sources", "**/*.rst.txt"),
    "perl-doc": ("usr/share/perl", "**/*.pod"),
}
TRANSLATIONS = "translations"  # of the kernel's documentation: not English


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    documents = [text for package in PACKAGES for text in unpacked(package, folder)]
    with (folder / "manuals.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
    print(f"{len(documents):,} documents, {sum(len(text.encode()) for text in documents):,} bytes of text")


def unpacked(package: str, folder: Path) -> Iterator[str]:
    """The texts of a package, by path."""
    subprocess.run(["apt-get", "download", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    archive = max(folder.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
    subprocess.run(["dpkg-deb", "-x", archive, folder / package], check=True)
    print(archive.name)
    root, pattern = PACKAGES[package]
    for path in sorted((folder / package / root).glob(pattern)):
        if TRANSLATIONS not in path.parts:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            yield content.decode(errors="replace")


if __name__ == "__main__":
    main()
