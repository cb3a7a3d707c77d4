"""How easy documents are to read, from words and sentences: ``python tests/readability.py FILE...``.

A sentence ends at ``.``, ``!`` or ``?``, or with its paragraph, list item or table cell. Code blocks, headings and
pictures are left out; `code in a line` is one word. The median is over prose alone: cells are short by nature.
"""

from __future__ import annotations

import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

WORD = re.compile(r"\w")
NUMBER = re.compile(r"(?<![\w.,-])\d[\d.,]*\d|(?<![\w.,-])\d(?!\w)")


@dataclass(frozen=True)
class Readability:
    """words: of the whole file, as ``wc -w`` counts them. prose, cells: sentences without their markup."""

    words: int
    prose: list[str]
    cells: list[str]

    @property
    def lengths(self) -> list[int]:
        """Words of each sentence of the prose."""
        return [count_words(sentence) for sentence in self.prose]

    @property
    def median(self) -> float:
        """Median words of a sentence of the prose; 0 where there is none."""
        return statistics.median(self.lengths or [0])

    def longer_than(self, limit: int) -> list[str]:
        """Return the sentences, of cells too, with more words than that."""
        return [sentence for sentence in [*self.prose, *self.cells] if count_words(sentence) > limit]

    def with_numbers(self, limit: int) -> list[str]:
        """Return the sentences of the prose with more numbers than that."""
        return [sentence for sentence in self.prose if len(NUMBER.findall(sentence)) > limit]


def count_words(sentence: str) -> int:
    """Return how many words have a letter or a digit."""
    return sum(bool(WORD.search(word)) for word in sentence.split())


def read(text: str) -> Readability:
    """Return the sentences of a Markdown text."""
    bare = re.sub(r"^ *(```|~~~).*?^ *\1", "", text, flags=re.S | re.M)  # code blocks
    bare = re.sub(r"<!--.*?-->|^#[^\n]*", "", bare, flags=re.S | re.M)
    bare = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", bare)  # pictures
    bare = re.sub(r"`[^`\n]+`", "code", bare)
    bare = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", bare)  # links
    prose: list[str] = []
    cells: list[str] = []
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*+]|\d+\.) )|\n(?=\|)", bare):
        block = re.sub(r"^\s*(?:>|[-*+]|\d+\.)\s+|[*_]{1,2}(?=\w)|(?<=[\w.])[*_]{1,2}", "", block.strip())
        if block.startswith("|"):
            cells += [part for cell in block.strip("|\n ").split("|") for part in sentences(cell)]
        else:
            prose += sentences(block)
    return Readability(len(text.split()), prose, cells)


def sentences(block: str) -> list[str]:
    """Return the sentences of a paragraph or cell."""
    parts = re.split(r"""(?<=[.!?])["')*]*\s+""", " ".join(block.split()))
    return [part for part in parts if count_words(part)]


def main(files: list[str]) -> None:
    """Print words, sentences, the longest one and the median of each file."""
    print(f"{'words':>6} {'sentences':>9} {'over 25':>7} {'longest':>7} {'median':>6}")
    for file in files:
        got = read(Path(file).read_text(encoding="utf-8"))
        longest = max([count_words(sentence) for sentence in [*got.prose, *got.cells]], default=0)
        over = len(got.longer_than(25))
        print(f"{got.words:6} {len(got.prose):9} {over:7} {longest:7} {got.median:6g}  {file}")


if __name__ == "__main__":
    main(sys.argv[1:])
