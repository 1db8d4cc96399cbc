"""Compressors by name: ours and those of any installed package, from one entry-point group."""

from collections.abc import Sequence
from importlib.metadata import entry_points

from hvd_llm.compress.base import Compressor
from hvd_llm.errors import UserError, nearest

GROUP = "hvd_llm.compressors"


def names() -> list[str]:
    """The names that `reduce.compressor` accepts here."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def groups(compressor: Compressor, of_the_mesh: Sequence) -> list:
    """Those of the mesh's groups that a compressor names in its attribute `groups`, such as ("node", "across")."""
    wanted = getattr(compressor, "groups", ())
    return [group for group in of_the_mesh if group.name.partition(".")[0] in wanted]


def find(name: str) -> Compressor:
    """Return the compressor of that name.

    Raises:
        UserError: no such name, or its package cannot be imported.
    """
    for point in entry_points(group=GROUP):
        if point.name == name:
            try:
                return point.load()
            except (ImportError, AttributeError) as error:
                raise UserError(f"compressor {name!r} ({point.value}) cannot be loaded: {error}") from None
    raise UserError(f"reduce.compressor is {name!r}, which is not installed{nearest(name, names())}")
