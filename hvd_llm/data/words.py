"""Where words start among tokens: what whole-word masking needs to know of a vocabulary."""

import json
from collections.abc import Callable

import numpy as np

from hvd_llm.data.shards import Dataset
from hvd_llm.errors import UserError

_SPACES = "Ġ▁Ċĉč"  # how byte-level and sentence-piece vocabularies write a space, tab or end of line


def word_starts(dataset: Dataset) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from token ids, int64 [B, T], to bool [B, T]: whether each one starts a word.

    WordPiece marks continuations ("##ing"). Byte-level tokens continue a word when they begin with a
    letter or digit and the token before ends with one. Special tokens are words of their own.

    Raises:
        UserError: the vocabulary cannot be read.
    """
    path = dataset.folder / "tokenizer" / "tokenizer.json"
    try:
        model = json.loads(path.read_bytes())["model"]
        vocabulary = model["vocab"]
        pieces = vocabulary.items() if isinstance(vocabulary, dict) else [(p, i) for i, (p, _) in enumerate(vocabulary)]
        prefix = model.get("continuing_subword_prefix") or ""
        continues_V, open_V = (np.zeros(dataset.vocabulary, bool) for _ in range(2))
        for piece, number in pieces:
            if prefix:
                continues_V[number], open_V[number] = piece.startswith(prefix), True
            elif piece:
                continues_V[number], open_V[number] = _in_word(piece[0]), _in_word(piece[-1])
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{path} has no vocabulary that data.whole_word can use: {error!r}") from None
    special = dataset.index.tokenizer.special_ids
    continues_V[special] = open_V[special] = False

    def starts(tokens_BT: np.ndarray) -> np.ndarray:
        starts_BT = np.ones(tokens_BT.shape, bool)
        starts_BT[:, 1:] = ~(continues_V[tokens_BT[:, 1:]] & open_V[tokens_BT[:, :-1]])
        return starts_BT

    return starts


def _in_word(character: str) -> bool:
    return character not in _SPACES and (character.isalnum() or ord(character) > 127)
