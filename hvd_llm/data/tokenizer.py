"""Tokenizers: trained here or taken from a folder, stored so that `transformers` loads them offline."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hvd_llm.errors import UserError

END, PAD = "<|endoftext|>", "<|pad|>"
BERT_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
TRAINED = ("bpe", "wordpiece")
SMALLEST = {"bpe": 258, "wordpiece": 64}  # all bytes and the special tokens; a small alphabet


def train(kind: str, texts: Iterable[str], vocabulary: int, lowercase: bool):
    """Train a `tokenizers.Tokenizer`: byte-level BPE (GPT-2) or WordPiece (BERT).

    The result depends on the texts alone, not on threads or on the process.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if kind == "wordpiece":
        return _train_wordpiece(list(texts), vocabulary, lowercase)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_wordpiece(texts: list[str], vocabulary: int, lowercase: bool):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    def tokenizer(model):
        result = Tokenizer(model)
        result.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        result.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        result.decoder = decoders.WordPiece()
        return result

    special = list(BERT_SPECIAL.values())
    learner = tokenizer(models.WordPiece(unk_token="[UNK]"))
    # Rare characters must not crowd out pieces of words: each takes two tokens, alone and continued.
    limit = max(vocabulary // 16, min(128, (vocabulary - len(special)) // 3))
    alphabet = _alphabet(texts, learner.normalizer, limit)
    # The trainer numbers continued characters in the order of a randomly seeded hash map, and ties between
    # merges follow those numbers. Named as special tokens, they get theirs first and in a fixed order.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        special_tokens=special + [f"##{character}" for character in alphabet],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    result = tokenizer(models.WordPiece(learner.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=100))
    result.add_special_tokens(special)
    result.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, result.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return result


def _alphabet(texts: list[str], normalizer, limit: int) -> list[str]:
    """The most frequent characters after normalisation, in a fixed order."""
    counts = np.zeros(0x110000, np.int64)
    for text in texts:
        codes, found = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_counts=True)
        counts[codes] += found
    normal: dict[str, int] = {}
    for code in np.flatnonzero(counts).tolist():
        for character in normalizer.normalize_str(chr(code)):
            if not character.isspace():
                normal[character] = normal.get(character, 0) + int(counts[code])
    return sorted(sorted(normal, key=lambda character: (-normal[character], character))[:limit])


def save(tokenizer, kind: str, folder: Path) -> None:
    """Store a trained tokenizer with the names of its special tokens."""
    from transformers import PreTrainedTokenizerFast

    if kind == "wordpiece":
        names = {f"{role}_token": token for role, token in BERT_SPECIAL.items()}
    else:
        names = {"bos_token": END, "eos_token": END, "pad_token": PAD}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def adopt(source: Path, kind: str, folder: Path) -> None:
    """Copy a tokenizer that `transformers` can load from the folder `source`. `kind` is that of the data.

    Raises:
        UserError: no tokenizer there, not a fast one, or without a token that the data needs.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many types for a damaged file
        raise UserError(f"--tokenizer {source} cannot be loaded: {(str(error).splitlines() or [''])[0]}") from None
    if not tokenizer.is_fast:
        raise UserError(f"--tokenizer {source} is not a fast tokenizer (it has no tokenizer.json)")
    if tokenizer.eos_token is None and tokenizer.sep_token is None:
        raise UserError(f"--tokenizer {source} has neither an end-of-text nor a separator token; it needs one")
    if kind != "text" and tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token  # attention masks tell them apart
    tokenizer.save_pretrained(folder)


def check_choice(choice: str, vocabulary: int, lowercase: bool) -> None:
    """Refuse an impossible --tokenizer, --vocabulary or --lowercase.

    Raises:
        UserError: names the option.
    """
    if choice in TRAINED:
        if vocabulary < SMALLEST[choice]:
            raise UserError(f"--vocabulary is {vocabulary}; --tokenizer {choice} needs {SMALLEST[choice]} or more")
        return
    if not (Path(choice) / "tokenizer.json").is_file():
        raise UserError(f"--tokenizer is {choice!r}: allowed are bpe, wordpiece, or a folder with a tokenizer.json")
    if lowercase:
        raise UserError("--lowercase is for tokenizers trained here; one from a folder has its own way with case")


def describe(folder: Path, kind: str) -> dict:
    """What index.json says of a stored tokenizer: its size, hash and special tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    roles = {role: getattr(tokenizer, f"{role}_token_id") for role in BERT_SPECIAL}
    roles["end"] = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return {
        "kind": kind,
        "vocabulary": max(tokenizer.get_vocab().values()) + 1,
        "sha256": hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
        "special": {role: number for role, number in roles.items() if number is not None},
        "special_ids": sorted(set(tokenizer.all_special_ids)),
    }


def load_for_encoding(folder: Path):
    """The bare `tokenizers.Tokenizer` of a stored folder, which never cuts, pads, or obeys special tokens in texts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def is_byte_level(folder: Path) -> bool:
    """Whether words need a space before them to be the tokens that they are inside a text."""
    return "ByteLevel" in json.dumps(json.loads((folder / "tokenizer.json").read_bytes()).get("pre_tokenizer"))
