"""Passages of real documents, in domains of very different sizes, from Debian packages."""

from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

SHARE = Path("/usr/share")
#: Packages to install with `apt-get install`.
PACKAGES = "dict-gcide wordnet-base manpages manpages-dev perl-doc bible-kjv debian-faq fortunes"
#: Characters of a passage: paragraphs are joined until they have as many.
LEAST, MOST = 400, 700


def passages(paragraphs: Iterable[str]) -> Iterator[str]:
    """Join paragraphs to passages of similar length; normalizes white space, and drops an incomplete last passage.

    >>> found = list(passages(["word " * 60] * 4))
    >>> [len(passage) for passage in found]
    [599, 599]
    """
    found = ""
    for paragraph in paragraphs:
        found = f"{found} {' '.join(paragraph.split())}".strip()
        while len(found) >= LEAST:
            end = len(found) if len(found) <= MOST else found.rfind(" ", LEAST, MOST)
            end = MOST if end < 0 else end
            yield found[:end]
            found = found[end:].strip()


def _read(path: Path) -> str:
    content = gzip.decompress(path.read_bytes()) if path.suffix in (".gz", ".dz") else path.read_bytes()
    return content.decode("utf-8", errors="replace")


def _blank_lines(text: str) -> list[str]:
    return re.split(r"\n\s*\n", text)


def dictionary() -> Iterator[str]:
    """The GNU collaborative dictionary of English."""
    return passages(_blank_lines(_read(SHARE / "dictd" / "gcide.dict.dz")))


def glosses() -> Iterator[str]:
    """WordNet's nouns with their glosses."""
    lines = _read(SHARE / "wordnet" / "data.noun").splitlines()
    return passages(
        f"{line.split(' ')[4].replace('_', ' ')}: {line.partition(' | ')[2]}." for line in lines if line[0] != " "
    )


def manual() -> Iterator[str]:
    """Manual pages without markup."""
    for path in sorted((SHARE / "man").glob("man[2-7]/*.gz")):
        lines = [line for line in _read(path).splitlines() if not line.startswith((".", "'"))]
        plain = re.sub(r"\\f[A-Z]|\\f\(..|\\[&/|^]", "", "\n".join(lines)).replace("\\-", "-")
        yield from passages([plain.replace("\\(aq", "'").replace("\\e", "\\")])


def perl() -> Iterator[str]:
    """The prose of Perl's documentation."""
    for path in sorted((SHARE / "perl").glob("*/pod/*.pod")):
        yield from passages(p for p in _blank_lines(_read(path)) if p and p[0] not in "= \t")


def scripture() -> Iterator[str]:
    """The King James Bible."""
    said = subprocess.run(
        ["bible", "-f", "gen1:1-rev22:21"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    return passages(line.partition(" ")[2] for line in said.stdout.splitlines())


def questions() -> Iterator[str]:
    """Debian's frequently asked questions."""
    return passages(_blank_lines(_read(SHARE / "doc" / "debian" / "FAQ" / "debian-faq.en.txt.gz")))


def fortunes() -> Iterator[str]:
    """Sayings, jokes and quotations."""
    for path in sorted((SHARE / "games" / "fortunes").iterdir()):
        if not path.suffix and not path.is_symlink():
            yield from passages(_read(path).split("\n%\n"))


#: Domains of the pool from the largest to the smallest, with their numbers of passages; then the held-out domain.
DOMAINS: dict[str, tuple[Callable[[], Iterator[str]], int]] = {
    "dictionary": (dictionary, 4000), "glosses": (glosses, 2000), "manual": (manual, 1000), "perl": (perl, 500),
    "scripture": (scripture, 250), "questions": (questions, 100),
}  # fmt: skip
LEFT_OUT = ("fortunes", fortunes)


def vary(text: str, rng: np.random.Generator, *, share: float = 0.05) -> str:
    """Return a near-duplicate with a share of the words left out, like pages that quote one another."""
    words = text.split(" ")
    kept = rng.random(len(words)) >= share
    return " ".join(word for word, keep in zip(words, kept, strict=True) if keep)
