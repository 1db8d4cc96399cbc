"""What every source is turned into, and how a long text becomes several."""

from collections.abc import Iterator
from typing import NamedTuple

LONGEST = 16_384  # characters; long enough for context, short enough to spread a single book over shards
_GOLDEN_RATIO = (5**0.5 - 1) / 2  # its multiples, modulo 1, are as evenly spread as any


class Document(NamedTuple):
    """One text with, by kind, nothing (text), a label (classify) or a tag for each word (tag).

    For kind tag `text` holds the words, one per line.
    """

    text: str
    label: str = ""
    tags: tuple[str, ...] = ()


def cut(text: str, longest: int = LONGEST) -> Iterator[str]:
    """Cut a long text between paragraphs; where one is too long between lines, words, or anywhere.

    The pieces differ in length, from about a tenth of `longest` on: equal ones could not be divided evenly
    unless their number happened to fit that of the shards.
    """
    start = number = 0
    while len(text) - start > longest:
        size = int(longest * (0.1 + 0.9 * (number * _GOLDEN_RATIO % 1)))
        for separator in ("\n\n", "\n", " "):
            end = text.rfind(separator, start + size // 2, start + size)
            if end >= 0:
                end += len(separator)
                break
        else:
            end = start + max(1, size)
        yield text[start:end]
        start, number = end, number + 1
    yield text[start:]
