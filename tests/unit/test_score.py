"""What a score is, and which is the best."""

import torch

from hvd_llm.evaluate import Score, macro_f1
from hvd_llm.state import Progress


def test_classes_that_are_nowhere_have_no_f1():
    """As scikit-learn's f1_score(average="macro"): labels in neither truth nor prediction do not count."""
    assert macro_f1(torch.tensor([[5.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]])) == 1
    assert macro_f1(torch.tensor([[0.0, 0.0], [4.0, 0.0]])) == 0
    assert macro_f1(torch.zeros(2, 2)) == 0


def test_a_score_that_is_not_a_number_is_never_the_best():
    progress = Progress()
    for step, loss in enumerate([float("nan"), 3.0, float("nan"), 2.0, 2.5]):
        progress.step = step
        progress.note(Score(loss, "perplexity", {"perplexity": loss}))
    assert (progress.best_step, progress.best_goodness, progress.evaluations_since_best) == (3, -2.0, 1)


def test_one_that_was_remembered_is_replaced():
    progress = Progress(step=7, best_goodness=float("nan"))
    progress.note(Score(3.0, "accuracy", {"accuracy": 0.5, "f1": 0.5}))
    progress.note(Score(float("nan"), "accuracy", {"accuracy": 0.9, "f1": 0.9}))
    assert (progress.best_step, progress.best_goodness) == (7, 0.5)


def test_a_perplexity_out_of_all_bounds_is_short():
    score = Score(700.0, "perplexity", {"perplexity": 1.014e304, "accuracy": 0.25})
    assert (score.readable("perplexity"), score.readable("accuracy")) == ("1.01e+304", "0.2500")
