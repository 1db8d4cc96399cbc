"""Made-up texts, and one call that prepares them."""

import random
from pathlib import Path

from hvd_llm.data.plan import Settings, make_plan
from hvd_llm.data.prepare import prepare

TEXT = "the a cat dog house tree running walked quickly into under blue green seven lamps and or but of speaking"
WORDS = TEXT.split()


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences that differ, of 4 to 14 words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(4, 14))) + f" {rng.randrange(10**6)}." for _ in range(count)]


def paragraphs(count: int, seed: int = 0) -> list[str]:
    return ["\n".join(sentences(30, seed * 1000 + number)) for number in range(count)]


def make(out: Path, source, validation_source=(), test_source=(), workers: int = 1, **settings):
    """Prepare `source` (a path or several) into `out`; return the index."""
    many = [source] if isinstance(source, str | Path) else source
    given = {"train": many, "validation": validation_source, "test": test_source}
    settings = {"vocabulary": 512, "near_duplicates": False} | settings
    plan = make_plan({name: [str(s) for s in these] for name, these in given.items() if these}, Settings(**settings))
    return prepare(plan, out, workers)


def causal(folder: Path) -> Path:
    """A folder in `folder`, prepared for causal models, with a vocabulary of 300."""
    (folder / "text.txt").write_text("\n\n".join(paragraphs(40)))
    make(folder / "causal", folder / "text.txt", vocabulary=300, validation=0.1)
    return folder / "causal"
