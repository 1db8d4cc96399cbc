"""What `prepare` is asked to do, and whether a folder already holds it."""

import hashlib
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from hvd_llm.data import index, sources, tokenizer
from hvd_llm.data.files import LOCK
from hvd_llm.errors import UserError

_PART_BYTES = (2 * 2**20, 64 * 2**20)  # smallest and largest unit of work
_OURS = re.compile(r"(train|validation|test)-\d{5}\.(tokens|offsets|labels)|tokenizer|index\.json|\.work")


@dataclass(frozen=True)
class Settings:
    """What decides the content of a prepared folder, besides its sources; saved in its index.json."""

    kind: str = "text"
    tokenizer: str = "bpe"
    vocabulary: int = 4096
    lowercase: bool = False
    whitespace: str = "lines"
    shards: int = 8
    validation: float = 0.02
    near_duplicates: bool = True
    text_column: str = ""
    label_column: str = ""
    header: str = "auto"
    undecodable: str = "error"


@dataclass(frozen=True)
class Plan:
    """The settings, the units of work, and a hash that identifies what the sources hold now."""

    settings: Settings
    parts: list[tuple[str, list[sources.Piece]]]  # (split, pieces)
    sources: str


def make_plan(given: dict[str, list[str]], settings: Settings) -> Plan:
    """Look at the sources of each split ("train" and perhaps "validation" and "test"); reads no texts.

    Raises:
        UserError: an impossible setting, or a source that is not there.
    """
    if not given.get("train"):
        raise UserError("give at least one SOURCE, such as `embedded` or a file")
    if not 0 < settings.validation < 1:
        raise UserError(f"--validation is {settings.validation:g}; it must be between 0 and 1")
    for option in ("shards", "vocabulary"):
        if getattr(settings, option) < 1:
            raise UserError(f"--{option} is {getattr(settings, option)}; it must be 1 or more")
    tokenizer.check_choice(settings.tokenizer, settings.vocabulary, settings.lowercase)
    identity, pieces = [], {}
    if settings.tokenizer not in tokenizer.TRAINED:
        identity.append(hashlib.sha256((Path(settings.tokenizer) / "tokenizer.json").read_bytes()).hexdigest())
    for split, names in given.items():
        pieces[split] = []
        for name in names:
            found, marks = sources.find(name, settings.kind, split)
            pieces[split] += found
            identity += [f"{split}:", *marks]
    total = sum(piece.bytes for split in pieces.values() for piece in split)
    unit = min(max(total // 256, _PART_BYTES[0]), _PART_BYTES[1])
    parts = [(split, group) for split in pieces for group in sources.group(pieces[split], unit)]
    return Plan(settings, parts, hashlib.sha256("\n".join(identity).encode()).hexdigest())


def finished(plan: Plan, out: Path) -> index.Index | None:
    """The index of `out` if it already holds what `plan` would make, None if it holds nothing.

    Raises:
        UserError: it holds another preparation, or files that are not ours.
    """
    if not (out / "index.json").exists():
        strangers = (
            [path.name for path in out.iterdir() if not _OURS.fullmatch(path.name) and path.name != LOCK]
            if out.is_dir()
            else []
        )
        if strangers or (out.exists() and not out.is_dir()):
            raise UserError(
                f"--out {out} is not an empty folder (it has {', '.join(sorted(strangers)[:3])}); give another"
            )
        return None
    found = index.read(out)
    for name, value in asdict(plan.settings).items():
        if found.settings.get(name) != value:
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{out} was prepared with {option} {found.settings.get(name)!r}, not {value!r}; "
                "give another --out, or --force to replace it"
            )
    if found.sources != plan.sources:
        raise UserError(f"{out} was prepared from other sources (or they have changed); give another --out, or --force")
    return found


def clear(out: Path) -> None:
    """Remove what `prepare` wrote into `out`, index.json first, and nothing else."""
    (out / "index.json").unlink(missing_ok=True)
    for path in list(out.iterdir()) if out.is_dir() else []:
        if _OURS.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
