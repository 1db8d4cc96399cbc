"""The corpus that every Python carries."""

import ast
import inspect
import textwrap
from collections import Counter

from hvd_llm.data import embedded

SOURCE = '''\
# Licence: do what you like,
# but say so.
"""What the module is about."""
import os

NAME = """not a docstring, but a value"""  # end of line
URL = "http://x/#no-comment"


def hello(name: str) -> str:
    """Greet somebody politely."""
    # This is an explanation
    #
    # that goes on.
    return f"hello {name} # not a comment"


class Thing:
    r"""A thing \\d with a docstring."""
'''


def test_docstrings_comments_and_code_are_told_apart():
    found = {}
    for document in embedded.documents(SOURCE, "classify"):
        found.setdefault(document.label, []).append(document.text)
    assert found["comment"] == ["Licence: do what you like,\nbut say so.", "This is an explanation\n\nthat goes on."]
    assert found["docstring"] == [
        "What the module is about.",
        "Greet somebody politely.",
        "A thing \\d with a docstring.",
    ]
    code = "\n".join(found["code"])
    for kept in ("not a docstring", "#no-comment", "# not a comment", "def hello", "import os"):
        assert kept in code
    for moved in ("Greet", "end of line", "explanation"):
        assert moved not in code


def test_docstrings_agree_with_the_syntax_tree():
    """What the regular expression calls a docstring is what Python does, on modules of some size."""
    for module in ("argparse.py", "asyncio/base_events.py", "difflib.py", "decimal.py", "http/client.py"):
        source = (embedded.root() / module).read_text(encoding="utf-8")
        owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        true = Counter(
            _words(text) for node in ast.walk(ast.parse(source)) if isinstance(node, owners) and (text := _doc(node))
        )
        found = Counter(_words(text) for label, text in embedded._pieces(source) if label == "docstring")
        missed, extra = sum((true - found).values()), sum((found - true).values())
        assert missed + extra <= 0.02 * sum(true.values()), (module, true - found, found - true)


def _doc(node):
    return inspect.cleandoc(ast.get_docstring(node, clean=False) or "")


def _words(text):
    return " ".join(textwrap.dedent(text).replace("\\", "").split())


def test_there_are_megabytes_of_it():
    files = embedded.files()
    assert len(set(files)) == len(files) > 500
    assert sum(size for _, size in files) > 5_000_000
    assert not any("site-packages" in path for path, _ in files)
