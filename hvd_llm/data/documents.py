"""What every source is turned into, and how a long text becomes several."""

from collections.abc import Iterator
from typing import NamedTuple

LONGEST = 16_384  # characters; long enough for context, short enough to spread a single book over shards


class Document(NamedTuple):
    """One text with, by kind, nothing (text), a label (classify) or a tag for each word (tag).

    For kind tag `text` holds the words, one per line.
    """

    text: str
    label: str = ""
    tags: tuple[str, ...] = ()


def cut(text: str, longest: int = LONGEST) -> Iterator[str]:
    """Cut a long text between paragraphs; where one is too long between lines, words, or anywhere."""
    start = 0
    while len(text) - start > longest:
        for separator in ("\n\n", "\n", " "):
            end = text.rfind(separator, start + longest // 2, start + longest)
            if end >= 0:
                end += len(separator)
                break
        else:
            end = start + longest
        yield text[start:end]
        start = end
    yield text[start:]
