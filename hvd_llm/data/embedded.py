"""The embedded corpus: the standard library's source, which every Python installation carries.

As text it is one document per source file. As a labelled task it is docstrings, comments and code, told
apart by one regular expression: exact for what it calls a string or a comment, at a tenth of the cost of
Python's own tokenizer.
"""

import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from hvd_llm.data.documents import Document, cut

NAME = "embedded"
_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__"}
_SHORTEST, _LONGEST_PIECE = 20, 1_000  # characters of a labelled document

_STRING_OR_COMMENT = re.compile(
    r"""
      (?P<long> (?:\b[rRbBuUfF]{1,2})? (?: \"{3} (?:[^\\]|\\.)*? \"{3} | '{3} (?:[^\\]|\\.)*? '{3} ) )
    | (?P<short> " (?:[^"\\\n]|\\.)* " | ' (?:[^'\\\n]|\\.)* ' )
    | (?P<comments> (?:^[ \t]*\#[^\n]*\n)+ )
    | (?P<comment> \#[^\n]* )
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_DEFINITION = re.compile(r"^(?=[ \t]*(?:@|def |class |async def ))", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n\s*\n")


def root() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def files() -> list[tuple[str, int]]:
    """Paths below `root()` and their sizes in bytes, sorted; packages installed by users are left out."""
    top, found = str(root()), []
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        for name in sorted(names):
            path = os.path.join(folder, name)
            if name.endswith(".py") and os.path.isfile(path):
                found.append((os.path.relpath(path, top), os.path.getsize(path)))
    return found


def documents(source: str, kind: str) -> Iterator[Document]:
    """Turn the text of one source file into documents of the kind text or classify."""
    if kind == "classify":
        for label, text in _pieces(source):
            for piece in cut(text, _LONGEST_PIECE):
                if len(piece.strip()) >= _SHORTEST:
                    yield Document(piece, label)
    else:
        yield from (Document(piece) for piece in cut(source))


def _pieces(source: str) -> Iterator[tuple[str, str]]:
    """Split a source file into (docstring | comment | code, text); every part comes once."""
    code, end = [], 0
    for match in _STRING_OR_COMMENT.finditer(source):
        if match["comments"]:
            text = "\n".join(line.strip().lstrip("#").strip() for line in match[0].splitlines())
            label = "comment"
        elif match["comment"]:
            text, label = "", "comment"  # at the end of a line: too short to learn from
        elif _is_docstring([*code, source[end : match.start()]], source[match.end() : match.end() + 80]):
            text, label = match[0].lstrip("rRbBuUfF").strip("\"'").strip(), "docstring"
        else:
            continue
        code.append(source[end : match.start()])
        end = match.end()
        if text:
            yield label, text
    code.append(source[end:])
    for definition in _DEFINITION.split("".join(code)):
        yield "code", _BLANK_LINES.sub("\n", definition).strip("\n")


def _is_docstring(before: list[str], after: str) -> bool:
    """Whether a string is a statement of its own at the start of a file or of a block, given the code around it."""
    line = before[-1].rstrip(" \t")
    if (line and not line.endswith("\n")) or after.lstrip(" \t")[:1] not in ("", "\n", "#"):
        return False
    last = next((code.rstrip() for code in reversed(before) if code.strip()), "")
    return not last or last.endswith(":")
