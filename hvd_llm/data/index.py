"""index.json: what a prepared folder holds. It is written last, so a folder that has one is complete."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from hvd_llm.errors import UserError

SCHEMA = "hvd_llm.data/1"
SPLITS = ("train", "validation", "test")
Kind = Literal["text", "classify", "tag"]
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

_value = dataclass(frozen=True, config=ConfigDict(extra="forbid"))


@_value
class Shard:
    """The files NAME.tokens, NAME.offsets and, for labelled kinds, NAME.labels."""

    name: Annotated[str, Field(pattern="^(train|validation|test)-[0-9]{5}$")]
    documents: Count
    tokens: Count
    files: dict[Literal["tokens", "offsets", "labels"], Sha256]


@_value
class Tokenizer:
    """The tokenizer/ folder; `special` maps the roles end, pad, unk, cls, sep, mask to token ids."""

    kind: str
    vocabulary: Annotated[int, Field(gt=0)]
    sha256: Sha256
    special: dict[Literal["end", "pad", "unk", "cls", "sep", "mask"], Count]
    special_ids: list[Count]


@_value
class Index:
    """All of index.json."""

    schema: Literal["hvd_llm.data/1"]
    kind: Kind
    version: str
    dtype: Literal["uint16", "uint32"]
    labels: list[str]
    tokenizer: Tokenizer
    splits: dict[Literal["train", "validation", "test"], list[Shard]]
    settings: dict[str, Any]
    sources: Sha256
    removed: dict[str, Count]
    fingerprint: Sha256


_ADAPTER = TypeAdapter(Index)


def fingerprint(content: dict[str, Any]) -> str:
    """Hash what defines the content: schema, kind, labels, tokenizer and the hashes of all shards."""
    names = ("schema", "kind", "dtype", "labels", "tokenizer", "splits")
    text = json.dumps({name: content[name] for name in names}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def build(**content) -> Index:
    """Make an index from plain values and give it its fingerprint."""
    content["schema"] = SCHEMA
    return _ADAPTER.validate_python(content | {"fingerprint": fingerprint(content)})


def to_json(index: Index) -> str:
    """The text of index.json."""
    return json.dumps(_ADAPTER.dump_python(index), indent=1) + "\n"


def read(folder: Path) -> Index:
    """Read and check ``folder/index.json``.

    Raises:
        UserError: the folder is not a finished preparation, or its index is damaged.
    """
    path = folder / "index.json"
    try:
        text = path.read_bytes()
    except OSError:
        raise UserError(
            f"{folder} is not a prepared folder: it has no readable index.json; run `hvd-llm prepare … --out {folder}`"
        ) from None
    try:
        index = _ADAPTER.validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise UserError(
            f"{path} is damaged or of another version: {where} {problem['msg']}; prepare it again with --force"
        ) from None
    if fingerprint(_ADAPTER.dump_python(index)) != index.fingerprint:
        raise UserError(f"{path} is damaged: its content does not match its fingerprint; prepare it again with --force")
    return index
