"""Every kind of source, and what a mistake in one says."""

import gzip
import itertools
import json
from collections import Counter

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpus import make, paragraphs

from hvd_llm.data import sources
from hvd_llm.data.columns import Fields
from hvd_llm.data.readers import read
from hvd_llm.errors import UserError


def documents(source, kind="text", split="train", **fields):
    """All documents of a source."""
    pieces, _ = sources.find(str(source), kind, split)
    return [document for piece in pieces for document in read(piece, Fields(kind, **fields), Counter())]


def texts(source, **fields):
    return [document.text for document in documents(source, **fields)]


def pairs(source, **fields):
    return [(document.text, document.label) for document in documents(source, "classify", **fields)]


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_files_folders_and_globs(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.md", "deep/c", ".hidden", "deep/.git"):
        written(tmp_path / name, name)
    assert texts(tmp_path) == ["a.md", "b.txt", "deep/c"]
    assert texts(tmp_path / "*.txt") == ["b.txt"]
    assert texts(tmp_path / "deep" / "c") == ["deep/c"]
    assert texts(written(tmp_path / "odd[1].txt", "brackets")) == ["brackets"]
    packed = tmp_path / "z.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"text": "packed"}'))
    assert texts(packed) == ["packed"]


def test_a_book_becomes_many_documents(tmp_path):
    book = "\n\n".join(paragraphs(40))
    parts = texts(written(tmp_path / "book.txt", book))
    assert len(parts) > 3
    assert "".join(parts) == book


@settings(deadline=None, max_examples=50)
@given(lines=st.lists(st.text(alphabet="aé\u2028", max_size=6), min_size=1, max_size=30), size=st.integers(1, 40))
def test_pieces_of_a_file_are_the_file(tmp_path_factory, lines, size):
    """Wherever a long file is cut, each line is read once, in order."""
    rows = [json.dumps({"text": f"{n} {line}"}, ensure_ascii=False) for n, line in enumerate(lines)]
    path = written(tmp_path_factory.mktemp("x") / "a.jsonl", "\n".join(rows))
    length = path.stat().st_size
    cuts = [*range(0, length, size), length]
    pieces = [sources.Piece("jsonl", str(path), a, b, b - a) for a, b in itertools.pairwise(cuts)]
    found = [d.text for piece in pieces for d in read(piece, Fields("text"), Counter())]
    assert found == [f"{n} {line}" for n, line in enumerate(lines)]


def test_the_line_is_named_also_in_a_later_piece(tmp_path):
    rows = [json.dumps({"text": "x" * 50})] * 100
    path = written(tmp_path / "a.jsonl", "\n".join([*rows[:70], "{broken", *rows[70:]]))
    with pytest.raises(UserError, match=r"a\.jsonl line 71 is not a JSON object"):
        list(read(sources.Piece("jsonl", str(path), 3000, 9000, 0), Fields("text"), Counter()))
    path = written(tmp_path / "b.jsonl", "\n".join(rows).encode() + b"\n\xff\n")
    with pytest.raises(UserError, match=r"b\.jsonl line 101 is not UTF-8 text \(byte 0xff\)"):
        list(read(sources.Piece("jsonl", str(path), 3000, 9000, 0), Fields("text"), Counter()))


def test_jsonl(tmp_path):
    rows = [{"text": "one", "label": 1, "body": "two"}, {"text": "three", "label": "x", "body": "four"}]
    path = written(tmp_path / "a.jsonl", "\ufeff" + "\n\n".join(map(json.dumps, rows)) + "\n")
    assert pairs(path) == [("one", "1"), ("three", "x")]
    assert texts(path, text="body") == ["two", "four"]


def test_csv_and_tsv(tmp_path):
    quoted = written(tmp_path / "a.csv", 'id,label,text\r\n1,x,"a, ""b""\nc\u2028d"\r\n\r\n2,y,e\r\n')
    assert pairs(quoted) == [('a, "b"\nc\u2028d', "x"), ("e", "y")]
    assert texts(quoted, text="label") == ["x", "y"]
    assert pairs(quoted, text="3", label="1", header="yes") == [('a, "b"\nc\u2028d', "1"), ("e", "2")]
    plain = written(tmp_path / "b.tsv", 'lone " quote\t0\nother\t1\n')
    assert pairs(plain) == [('lone " quote', "0"), ("other", "1")]
    numbered = written(tmp_path / "c.tsv", "2\tfirst\n1\tsecond\n")
    assert pairs(numbered, text="2", label="1") == [("first", "2"), ("second", "1")]
    assert texts(written(tmp_path / "d.csv", "only\none column\n")) == ["only", "one column"]


def test_parquet(tmp_path):
    table = pa.table({"text": ["one", None, "two"], "label": [0, 1, 0]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert pairs(tmp_path / "a.parquet") == [("one", "0"), ("", "1"), ("two", "0")]
    words = pa.table({"tokens": [["New", "York"], ["is"]], "tags": [["B", "I"], ["O"]]})
    pyarrow.parquet.write_table(words, tmp_path / "b.parquet")
    found = documents(tmp_path / "b.parquet", "tag")
    assert [(d.text, d.tags) for d in found] == [("New\nYork", ("B", "I")), ("is", ("O",))]


def test_folders_saved_by_datasets(tmp_path):
    import datasets

    classes = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    train = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=classes)
    test = datasets.Dataset.from_dict({"text": ["c"], "label": [1]}, features=classes)
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "two")
    assert pairs(tmp_path / "one") == pairs(tmp_path / "two") == [("a", "yes"), ("b", "no")]
    assert [d.text for d in documents(tmp_path / "two", split="test")] == ["c"]
    with pytest.raises(UserError, match="no split 'validation'"):
        documents(tmp_path / "two", split="validation")


def test_conll(tmp_path):
    path = written(
        tmp_path / "a.txt", "-DOCSTART- -X- O\n\n# id = 1\nNew NNP B-LOC\r\nYork NNP I-LOC\r\n\n\n# NN O\n! . O"
    )
    found = documents(path, "tag")
    assert [(d.text, d.tags) for d in found] == [("New\nYork", ("B-LOC", "I-LOC")), ("#\n!", ("O", "O"))]
    assert documents(path, "tag", label="2")[0].tags == ("NNP", "NNP")


def test_urls(tmp_path):
    with fsspec.open("memory://bucket/deep/a.txt", "w") as file:
        file.write("in memory")
    assert texts("memory://bucket") == texts("memory://bucket/deep/*.txt") == ["in memory"]
    assert texts(f"file://{written(tmp_path / 'b.txt', 'local')}") == ["local"]


def test_preparing_from_memory(tmp_path):
    for number, text in enumerate(paragraphs(4)):
        with fsspec.open(f"memory://corpus/{number}.txt", "w") as file:
            file.write(text)
    index = make(tmp_path / "out", "memory://corpus", workers=2)
    assert sum(shard.documents for shards in index.splits.values() for shard in shards) == 4


MISTAKES = {
    "utf8.txt": (b"fine\nnot \xff fine", {}, r"utf8\.txt line 2 is not UTF-8"),
    "json.jsonl": ('{"text": "a"}\n{"text": ', {}, r"json\.jsonl line 2 is not a JSON object"),
    "list.jsonl": ("[1]", {}, r"list\.jsonl line 1 is not a JSON object but a list"),
    "field.jsonl": ('{"text": "a"}\n{"body": "b"}', {}, r"field\.jsonl line 2 has no field 'text'; it has 'body'"),
    "name.jsonl": ('{"text": "a"}', {"text": "body"}, r"line 1 has no column 'body' \(--text-column\); it has 'text'"),
    "type.jsonl": ('{"text": 3}', {}, r"type\.jsonl line 1 has int where text is expected"),
    "label.jsonl": ('{"text": "a", "label": null}', {"kind": "classify"}, r"label\.jsonl line 1 has no label"),
    "row.csv": ("text,label\na,b\nc\n", {"kind": "classify"}, r"row\.csv line 3 has 1 columns, but column 2"),
    "name.csv": ("a,b\nc,d\n", {"text": "body"}, r"name\.csv line 1 has no column 'body'"),
    "head.csv": ("a,b\nc,d\n", {"text": "body", "header": "yes"}, r"no column 'body'; it has 'a', 'b'"),
    "many.csv": ("a,b,c\nd,e,f\n", {}, r"many\.csv line 1 has 3 columns .* --text-column"),
    "quote.csv": ('text\n"open', {}, r"quote\.csv line 2 is not valid CSV"),
    "one.conll": ("New B\nYork\n", {"kind": "tag"}, r"one\.conll line 2 has one column"),
    "name.conll": ("New B\n", {"kind": "tag", "text": "word"}, "give a number from 1, not 'word'"),
    "tags.jsonl": ('{"tokens": ["a"], "tags": []}', {"kind": "tag"}, "line 1 needs a list of words"),
    "bad.parquet": (b"PAR1 but not really", {}, r"bad\.parquet"),
    "bad.jsonl.gz": (b"\x1f\x8b but not really", {}, r"bad\.jsonl\.gz"),
    "plain.txt": ("text", {"kind": "classify"}, r"plain\.txt has no labels"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_name_the_file_and_the_line(name, tmp_path):
    content, fields, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        documents(written(tmp_path / name, content), **fields)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/at/all.txt", "does not exist"),
        ("nowhere/*.txt", "has no files"),
        ("magic://bucket/a", "magic"),
        ("dropbox://folder/a", r"cannot open dropbox://folder/a: .*dropboxdrivefs"),
    ],
)
def test_sources_that_are_not_there(source, message):
    with pytest.raises(UserError, match=message):
        sources.find(source, "text", "train")


def test_undecodable_files_can_be_left_out(tmp_path):
    path, removed = written(tmp_path / "a.txt", b"\xff"), Counter()
    (piece,), _ = sources.find(str(path), "text", "train")
    assert [d.text for d in read(piece, Fields("text", undecodable="skip"), removed) if d.text] == []
    assert removed == {"undecodable files": 1}


def test_grouping_depends_on_sizes_alone():
    pieces = [sources.Piece("text", str(n), 0, -1, size) for n, size in enumerate([5, 5, 1, 30, 2, 2])]
    assert [[piece.bytes for piece in group] for group in sources.group(pieces, 10)] == [[5, 5], [1, 30], [2, 2]]
    assert sources.group([], 10) == []
