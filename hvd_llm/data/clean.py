"""Cleaning of text: one Unicode form, no control characters, tidy white space."""

import re
import unicodedata

WHITESPACE = ("lines", "collapse", "keep")

# Everything below a space but tab and newline, DEL and C1, zero-width and byte-order marks.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\ufeff]")
_LINE_ENDS = re.compile("\r\n?|[\u2028\u2029]")
_SURROGATES = re.compile("[\ud800-\udfff]")  # JSON can smuggle halves of characters in
_TRAILING = re.compile(r"[^\S\n]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{4,}")


def clean(text: str, whitespace: str = "lines") -> str:
    """Normalise `text`: Unicode NFC, newlines as \\n, no control characters.

    Args:
        whitespace: "lines" keeps indentation and strips what trails (for code and prose), "collapse" turns
            every run of white space into one space, "keep" leaves it alone.
    """
    text = _LINE_ENDS.sub("\n", text)
    text = _SURROGATES.sub("\ufffd", text) if not text.isascii() else text
    text = unicodedata.normalize("NFC", _CONTROL.sub("", text))
    if whitespace == "collapse":
        return " ".join(text.split())
    if whitespace == "lines":
        return _BLANK_LINES.sub("\n\n\n", _TRAILING.sub("", text)).strip("\n")
    return text


def clean_words(words: str, whitespace: str = "lines") -> str:
    """Clean words, one per line, and keep their number: a word of which nothing is left becomes U+FFFD."""
    return "\n".join(clean(word, "collapse") or "\ufffd" for word in words.split("\n"))
