"""Compressors by name: ours and those of any installed package, from one entry-point group."""

import ast
import functools
import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import torch

from hvd_llm.compress.base import At, Compressor, compressor
from hvd_llm.compress.none import none
from hvd_llm.errors import UserError, first_line, nearest

GROUP = "hvd_llm.compressors"

# What `auto` chooses among, from what loses nothing to what loses most; not what costs more loss than it saves time.
AMONG = "none bf16 int8 int4 powersgd"


@functools.cache
def _installed() -> dict[str, EntryPoint]:
    """By name, of two the first. Looking through all packages takes a while, on a shared file system above all."""
    return {point.name: point for point in reversed(entry_points(group=GROUP))}


def names() -> list[str]:
    """The names that `reduce.compressor` accepts here, besides auto."""
    return sorted(_installed())


def find(text: str) -> Compressor:
    """Return the compressor that `text` names, such as "topk", "topk(keep=32)" or "hierarchical(across=topk(keep=32))".

    Raises:
        UserError: no such name or option, or its package cannot be imported.
    """
    name, options = _parse(text)
    if name == "auto":
        raise UserError("reduce.compressor is 'auto' within another; write auto(hierarchical=true), for instance")
    if name not in _installed():
        raise UserError(
            f"reduce.compressor is {text!r}: {name!r} is not installed{nearest(name.lower(), [*names(), 'auto'])}"
        )
    found = _with_options(_load(_installed()[name]), text, options)
    _try(found, text)
    return found


def candidates(text: str) -> list[Compressor]:
    """What `reduce.compressor` allows: one, or for "auto" several, `none` first.

    auto's options are `among`, words that name compressors, and `hierarchical`: whether each of them may also be used
    across hosts only, behind `hierarchical`.

    Raises:
        UserError: one of them cannot be.
    """
    name, options = _parse(text)
    if name != "auto":
        return [find(text)]
    among, hierarchical = options.pop("among", AMONG), options.pop("hierarchical", False)
    if options or not isinstance(among, str) or not isinstance(hierarchical, bool):
        raise UserError(f"reduce.compressor is {text!r}; write auto(among='int8 onebit', hierarchical=true), or less")
    words = _split(among)
    if hierarchical:
        words = [each for word in words for each in (word, f"hierarchical(across={word})")]
    named = [find(word) for word in words]
    if any(compressor.name == "rows" for compressor in named):
        raise UserError(f"reduce.compressor is {text!r}: none sends embeddings by rows already; leave rows out")
    others = [compressor.name for compressor in named if not compressor.sums]
    if others:
        raise UserError(f"reduce.compressor is {text!r}: {others[0]} does not sum gradients, so speed cannot decide")
    return [none, *(compressor for compressor in named if compressor != none)]


def _split(text: str) -> list[str]:
    """Words of a text, spaces inside brackets belong to their word."""
    words, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character.isspace() and depth == 0:
            words.append("")
        else:
            words[-1] += character
    return [word for word in words if word]


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    """Read "name" or "name(option=value, …)"; values are plain Python literals, or compressors as text."""
    examples = "'topk(keep=32)' or \"auto(among='int8 topk')\""
    wrong = f"reduce.compressor is {text!r}; write a name, or options by name, as in {examples}"
    try:
        name, bracket, options = text.strip().partition("(")
        tree = ast.parse(name.replace("-", "_") + bracket + options, mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.args:
            raise UserError(wrong)
        values = {word.arg: _literal(word.value) for word in tree.keywords if word.arg}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # all that Python's parser knows
        raise UserError(wrong) from None
    if len(values) != len(tree.keywords):
        raise UserError(wrong)
    return tree.func.id, values


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in ("true", "false"):
        return node.id == "true"
    if isinstance(node, ast.Name | ast.Call):
        return ast.unparse(node)
    return ast.literal_eval(node)


def _load(point) -> Compressor:
    try:
        found = point.load()
    except Exception as error:  # whatever another's package does when it is imported
        raise UserError(f"compressor {point.name!r} ({point.value}) cannot be loaded: {first_line(error)}") from None
    return found if isinstance(found, Compressor) else compressor(found)


def _try(found: Compressor, text: str) -> None:
    """Let it make its first request, so that an option that cannot be is found before training."""
    shape = (2, 64, 48) if found.takes == "matrices" else (10_000,)
    try:
        exchange = found(torch.ones(shape), {}, At(size=2, groups=dict.fromkeys(found.groups, (0, 2))))
        if not inspect.isgenerator(exchange):
            raise UserError("it is no generator: it must yield what it wants communicated")
        next(exchange)
    except StopIteration:
        pass
    except UserError as error:
        raise UserError(f"reduce.compressor is {text!r}: {error}") from None
    except Exception as error:
        raise UserError(f"reduce.compressor is {text!r}, which cannot be: {first_line(error)}") from None


def _with_options(found: Compressor, text: str, options: dict[str, Any]) -> Compressor:
    for name, value in sorted(options.items(), key=lambda option: not _wraps(found, option[0])):
        if name not in found.defaults:
            others = nearest(name, found.defaults) if found.defaults else "; it has none"
            raise UserError(f"reduce.compressor is {text!r}: no option {name!r}{others}")
        default = found.defaults[name].name if _wraps(found, name) else found.defaults[name]
        kinds = {float: (float, int)}.get(type(default), (type(default),))
        if type(value) not in kinds:
            raise UserError(f"reduce.compressor is {text!r}: {name} is {value!r}, but should be like {default!r}")
        if name == "feedback" and not 0 <= value <= 1:
            raise UserError(f"reduce.compressor is {text!r}: feedback is {value}; it must be from 0 to 1")
        found = found.with_options(**{name: find(value) if _wraps(found, name) else value})
    return found


def _wraps(found: Compressor, option: str) -> bool:
    """Whether an option is another compressor. What that one is says which other options there are."""
    return isinstance(found.defaults.get(option), Compressor)
