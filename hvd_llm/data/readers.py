"""One reader per format: a piece of a source to documents. Mistakes in files name the file and the line."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

import fsspec

from hvd_llm.data import embedded
from hvd_llm.data.columns import Columns, Fields, labelled
from hvd_llm.data.documents import Document, cut
from hvd_llm.data.sources import Piece, accessing
from hvd_llm.errors import UserError

csv.field_size_limit(2**31 - 1)


def read(piece: Piece, fields: Fields, removed: Counter) -> Iterator[Document]:
    """Yield the documents of a piece in the order of the file; count in `removed` what is left out.

    Raises:
        UserError: unreadable, undecodable or malformed; names the file and line or row.
    """
    if piece.reader == "embedded":
        yield from _embedded(piece, fields, removed)
    elif piece.reader.startswith("datasets:"):
        yield from _datasets(piece, fields)
    elif piece.reader == "parquet":
        yield from _parquet(piece, fields)
    else:
        reader = {"text": _text, "jsonl": _jsonl, "csv": _csv, "tsv": _csv, "conll": _conll}[piece.reader]
        text, begin = _decoded(piece, fields, removed)
        try:
            yield from reader(piece, fields, text, 1)
        except UserError:
            # The true line is worth counting only now: meet the mistake again, knowing what comes before.
            yield from reader(piece, fields, text, 1 + _lines_before(piece.url, begin))


def _embedded(piece: Piece, fields: Fields, removed: Counter) -> Iterator[Document]:
    path = embedded.root() / piece.url
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:  # a few tests of Python itself are written in other encodings
        removed["undecodable files"] += 1
        return
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    yield from embedded.documents(text, fields.kind)


def _decoded(piece: Piece, fields: Fields, removed: Counter) -> tuple[str, int]:
    """The text of all lines that start inside a piece, and the byte where the first of them begins."""
    with accessing(piece.url), fsspec.open(piece.url, "rb", compression="infer") as file:
        begin, data = _whole_lines(file, piece.start, piece.stop)
    try:
        return data.decode("utf-8-sig"), begin
    except UnicodeDecodeError as error:
        if fields.undecodable == "skip":
            removed["undecodable files"] += 1
            return "", begin
        line = 1 + _lines_before(piece.url, begin) + data[: error.start].count(b"\n")
        raise UserError(
            f"{piece.url} line {line} is not UTF-8 text (byte 0x{data[error.start]:02x}): convert it, or leave such "
            "files out with --undecodable skip"
        ) from None


def _whole_lines(file: BinaryIO, start: int, stop: int) -> tuple[int, bytes]:
    if stop < 0:
        return 0, file.read()
    if start:
        file.seek(start - 1)
        file.readline()  # the line that byte start - 1 lies in belongs to the piece before
    begin = file.tell()
    if begin >= stop:
        return begin, b""
    return begin, file.read(stop - begin - 1) + file.readline()


def _lines_before(url: str, end: int) -> int:
    if not end:
        return 0
    count = 0
    with accessing(url), fsspec.open(url, "rb") as file:
        while rest := end - file.tell():
            count += file.read(min(rest, 2**24)).count(b"\n")
    return count


def _text(piece: Piece, fields: Fields, text: str, line: int) -> Iterator[Document]:
    yield from (Document(part) for part in cut(text))


def _jsonl(piece: Piece, fields: Fields, text: str, line: int) -> Iterator[Document]:
    columns = None
    for number, row in enumerate(text.split("\n"), line):
        if not row.strip():
            continue
        where = f"{piece.url} line {number}"
        try:
            record = json.loads(row)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not a JSON object: {error}") from None
        if not isinstance(record, dict):
            raise UserError(f"{where} is not a JSON object but a {type(record).__name__}")
        columns = columns or Columns.by_name(fields, list(record), where)
        yield labelled(fields.kind, _get(record, columns.text, where), _get(record, columns.label, where), where)


def _get(record: dict[str, Any], name: str | None, where: str) -> Any:
    if name is not None and name not in record:
        raise UserError(f"{where} has no field {name!r}; it has {', '.join(map(repr, record))}")
    return record.get(name)


def _csv(piece: Piece, fields: Fields, text: str, line: int) -> Iterator[Document]:
    # Tab-separated files of sentences rarely quote, and often hold lone quotation marks.
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if piece.reader == "tsv" else {"strict": True}
    rows = csv.reader(io.StringIO(text, newline=""), **style)
    columns = None
    try:
        for row in rows:
            where = f"{piece.url} line {rows.line_num}"
            if not row:
                continue
            if columns is None:
                columns, is_header = Columns.of_table(fields, row, where)
                if is_header:
                    continue
            yield labelled(fields.kind, _cell(row, columns.text, where), _cell(row, columns.label, where), where)
    except csv.Error as error:
        raise UserError(f"{piece.url} line {rows.line_num} is not valid {piece.reader.upper()}: {error}") from None


def _cell(row: list[str], number: int | None, where: str) -> str | None:
    if number is not None and number >= len(row):
        raise UserError(f"{where} has {len(row)} columns, but column {number + 1} is needed")
    return None if number is None else row[number]


def _parquet(piece: Piece, fields: Fields) -> Iterator[Document]:
    import pyarrow.parquet

    with accessing(piece.url), fsspec.open(piece.url, "rb") as file:
        table = pyarrow.parquet.ParquetFile(file)
        columns = Columns.by_name(fields, table.schema_arrow.names, piece.url)
        wanted = [name for name in (columns.text, columns.label) if name]
        row = 0
        for batch in table.iter_batches(columns=wanted):
            for record in batch.to_pylist():
                row += 1
                where = f"{piece.url} row {row}"
                yield labelled(fields.kind, record[columns.text], record.get(columns.label), where)


def _datasets(piece: Piece, fields: Fields) -> Iterator[Document]:
    import datasets

    with accessing(piece.url):
        loaded = datasets.load_from_disk(piece.url)
        if isinstance(loaded, datasets.DatasetDict):
            split = piece.reader.partition(":")[2]
            if split not in loaded:
                raise UserError(f"{piece.url} has no split {split!r}; it has {', '.join(loaded)}")
            loaded = loaded[split]
        columns = Columns.by_name(fields, loaded.column_names, piece.url)
        name = _class_names(loaded.features[columns.label]) if columns.label else None
        for row, record in enumerate(loaded.select_columns([c for c in (columns.text, columns.label) if c]), 1):
            label = record.get(columns.label)
            if name:
                label = [name(tag) for tag in label] if isinstance(label, list) else name(label)
            yield labelled(fields.kind, record[columns.text], label, f"{piece.url} row {row}")


def _class_names(feature):
    """The function from a stored number to a class name, if the column has class names."""
    feature = getattr(feature, "feature", feature)
    return getattr(feature, "int2str", None)


def _conll(piece: Piece, fields: Fields, text: str, line: int) -> Iterator[Document]:
    """Columns parted by white space, a word per line, a blank line between sentences; the last column is the tag."""
    columns = Columns.of_words(fields, piece.url)
    words, tags = [], []
    for number, row in enumerate([*text.split("\n"), ""], line):
        cells = row.split()
        comment = not words and row.startswith("# ") and "=" in row
        if cells and cells[0] != "-DOCSTART-" and not comment:
            where = f"{piece.url} line {number}"
            if len(cells) < 2:
                raise UserError(f"{where} has one column, but a word and its tag are needed")
            words.append(_cell(cells, columns.text, where))
            tags.append(cells[-1] if columns.label is None else _cell(cells, columns.label, where))
        elif words and not cells:
            yield Document("\n".join(words), tags=tuple(tags))
            words, tags = [], []
