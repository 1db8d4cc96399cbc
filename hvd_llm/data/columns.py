"""Which columns hold the text and the label, and whether a table starts with their names."""

from dataclasses import dataclass
from typing import Any

from hvd_llm.data.documents import Document
from hvd_llm.errors import UserError

_DEFAULTS = {"text": ("text", None), "classify": ("text", "label"), "tag": ("tokens", "tags")}


@dataclass(frozen=True)
class Fields:
    """What the user said of them: names, or numbers from 1, empty for the defaults; header is auto, yes or no."""

    kind: str
    text: str = ""
    label: str = ""
    header: str = "auto"
    undecodable: str = "error"  # or "skip"


@dataclass(frozen=True)
class Columns:
    """Names, or numbers from 0, of the text and the label; None: there is none."""

    text: Any
    label: Any

    @classmethod
    def by_name(cls, fields: Fields, names: list[str], where: str) -> "Columns":
        """Columns of records that have names (JSONL, Parquet, `datasets`)."""
        text, label = _wanted(fields)
        for option, name in (("--text-column", text), ("--label-column", label)):
            if name is not None and name not in names:
                raise UserError(f"{where} has no column {name!r} ({option}); it has {', '.join(map(repr, names))}")
        return cls(text, label)

    @classmethod
    def of_table(cls, fields: Fields, row: list[str], where: str) -> tuple["Columns", bool]:
        """Columns of a CSV or TSV file with this first row, and whether that row is a header."""
        text, label = _wanted(fields)
        needed = 1 if label is None else 2
        named = [name for name in (text, label) if name is not None and not name.isdecimal()]
        chosen = bool(fields.text or fields.label)
        header = fields.header == "yes" or (fields.header == "auto" and any(name in row for name in named))
        if not header and named and (chosen or len(row) != needed):
            if chosen:
                raise UserError(f"{where} has no column {named[0]!r}; its first row is {', '.join(map(repr, row))}")
            raise UserError(
                f"{where} has {len(row)} columns and no header with {named[0]!r}: say which to use with --text-column"
                f"{' and --label-column' if needed == 2 else ''} (a name, or a number from 1)"
            )
        if not header and named:
            return cls(0, 1 if needed == 2 else None), False
        names = row if header else []
        return cls(_number(text, names, where), _number(label, names, where)), header

    @classmethod
    def of_words(cls, fields: Fields, where: str) -> "Columns":
        """Columns of CoNLL files, which have no names: the first and, unless chosen, the last."""
        for name in (fields.text, fields.label):
            if name and not name.isdecimal():
                raise UserError(f"{where} has columns without names: give a number from 1, not {name!r}")
        return cls(_number(fields.text or "1", [], where), _number(fields.label or None, [], where))


def _wanted(fields: Fields) -> tuple[str, str | None]:
    text, label = _DEFAULTS[fields.kind]
    return fields.text or text, (fields.label or label) if label else None


def _number(name: str | None, header: list[str], where: str) -> int | None:
    """Place of a column, from 0, given its name in the header or its number from 1."""
    if name is None:
        return None
    if name in header:
        return header.index(name)
    if not name.isdecimal() or int(name) < 1:
        raise UserError(f"{where} has no column {name!r}; it has {', '.join(map(repr, header))}")
    return int(name) - 1


def labelled(kind: str, text: Any, label: Any, where: str) -> Document:
    """Make a document of a row's values after checking their types.

    Raises:
        UserError: the text is not text, or the label is missing, or words and tags differ in number.
    """
    if kind == "tag":
        if not (isinstance(text, list) and isinstance(label, list) and len(text) == len(label)):
            raise UserError(f"{where} needs a list of words and a list of as many tags")
        words = [" ".join(str(word).split()) for word in text]
        return Document("\n".join(words), tags=tuple(str(tag) for tag in label))
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where} has {type(text).__name__} where text is expected")
    if kind == "classify" and (label is None or isinstance(label, list | dict) or str(label) == ""):
        raise UserError(f"{where} has no label (it is {label!r})")
    return Document(text or "", "" if kind == "text" else str(label).strip())
