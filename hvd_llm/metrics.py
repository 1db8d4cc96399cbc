"""What rank 0 shows and keeps while training: progress, metrics.csv, TensorBoard."""

from __future__ import annotations

import csv
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from hvd_llm.errors import UserError

if TYPE_CHECKING:
    from hvd_llm.evaluate import Score

COLUMNS = [
    "step",
    "time_s",
    "loss",
    "learning_rate",
    "gradient_norm",
    "tokens",
    "tokens_per_s",
    "mfu",
    "sent_mb",
    "skipped",
    "score_name",
    "score",
    "validation_loss",
]


class MetricsFile:
    """metrics.csv: one row per log interval and per evaluation; flushed row by row."""

    def __init__(self, path: Path, first_step: int):
        """Open `path` to append; rows of steps that a resume will repeat are dropped.

        Raises:
            UserError: what is there cannot be read.
        """
        kept = []
        if path.exists():
            try:
                with open(path, newline="") as file:
                    kept = [row for row in csv.DictReader(file, restval="") if int(row["step"]) <= first_step]
            except (ValueError, KeyError, csv.Error) as error:
                raise UserError(f"{path} cannot be continued: {error}; move it away to go on without it") from None
        draft = path.with_suffix(".csv.writing")
        with open(draft, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        draft.rename(path)
        self._file = open(path, "a", newline="")  # noqa: SIM115 - open for the run
        self._writer = csv.DictWriter(self._file, COLUMNS)

    def write(self, row: dict) -> None:
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Display:
    """A progress bar on a terminal; elsewhere (a log, a launcher's pipe) a line at least 5 s apart."""

    EVERY_S = 5.0

    def __init__(self, first_step: int, steps: int, unit: str = "step"):
        self._steps, self._first, self._unit, self._began = steps, first_step, unit, time.monotonic()
        self._last_line = -math.inf
        self._bar = tqdm(total=steps, initial=first_step, unit=unit) if sys.stderr.isatty() else None

    def show(self, step: int, text: str) -> None:
        """Tell that `step` steps are done."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif time.monotonic() - self._last_line > self.EVERY_S or step == self._steps:
            self._last_line = time.monotonic()
            left = (time.monotonic() - self._began) / max(1, step - self._first) * (self._steps - step)
            self.say(f"{self._unit} {step}/{self._steps}  {text}  ETA {int(left) // 60}:{int(left) % 60:02d}")

    def say(self, line: str) -> None:
        """Print a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Metrics:
    """Rank 0's witness of the run."""

    def __init__(
        self,
        run: Path,
        first_step: int,
        steps: int,
        flops_per_token: int,
        peak_flops: float,
        skipped: int = 0,
        plain_mb: float = 0.0,
    ):
        """
        Args:
            flops_per_token: FLOP of forward and backward per token.
            peak_flops: FLOP/s of all devices together; `mfu` is the share reached.
            skipped: steps that were left out before.
            plain_mb: 10^6 bytes that a rank would send in a step to sum its gradients as they are.
        """
        from torch.utils.tensorboard import SummaryWriter  # slow to import, needed on rank 0 only

        self._file = MetricsFile(run / "metrics.csv", first_step)
        self._board = SummaryWriter(run / "tensorboard", purge_step=first_step + 1)
        self._display = Display(first_step, steps)
        self._flops_per_token, self._peak = flops_per_token, peak_flops
        self._began = self._mark = time.monotonic()
        self._tokens_since, self._skipped = 0, skipped
        self._plain_mb, self._sent, self._sent_before, self._steps_since = plain_mb, 0.0, 0.0, 0

    def step(self, step: int, log: bool, row: dict, tokens: int, sent_bytes: float) -> None:
        """Take note of a finished step (counted from 1) that trained on `tokens` input tokens.

        Args:
            sent_bytes: all that this rank has sent since it was started.
        """
        self._tokens_since += tokens
        self._steps_since += 1
        self._sent = sent_bytes
        if not log:
            return
        elapsed = time.monotonic() - self._mark
        rate = self._tokens_since / elapsed
        sent_mb = (self._sent - self._sent_before) / 1e6 / self._steps_since
        row |= {"tokens_per_s": rate, "mfu": rate * self._flops_per_token / self._peak, "sent_mb": sent_mb}
        self._write(step, row)
        new = row.get("skipped", 0) - self._skipped
        self._skipped += new
        skipped = f"  skipped {new}: gradients not finite" if new else ""
        sent = f"  {sent_mb:.2f} of {self._plain_mb:.2f} MB sent" if sent_mb else ""
        self._display.show(step, f"loss {row['loss']:.4f}  {rate:,.0f} tokens/s  MFU {row['mfu']:.1%}{sent}{skipped}")
        self.resume_clock()

    def evaluation(self, step: int, score: Score) -> None:
        self._write(step, {"score_name": score.name, "score": score.value, "validation_loss": score.loss})
        self.say(f"step {step}: validation loss {score.loss:.4f}, {score.name} {score.readable(score.name)}")

    def resume_clock(self) -> None:
        """Start a new interval: what happened since the last one (evaluation, checkpoint) is not training."""
        self._mark, self._tokens_since, self._steps_since, self._sent_before = time.monotonic(), 0, 0, self._sent

    def _write(self, step: int, row: dict) -> None:
        self._file.write({"step": step, "time_s": round(time.monotonic() - self._began, 3)} | row)
        for name, value in row.items():
            if isinstance(value, int | float):
                self._board.add_scalar(name, value, step)

    def say(self, line: str) -> None:
        self._display.say(line)

    def close(self) -> None:
        self._display.close()
        self._file.close()
        self._board.close()


class Silence(Metrics):
    """The other ranks."""

    def __init__(self):
        pass

    def step(self, step, log, row, tokens, sent_bytes):
        pass

    def evaluation(self, step, score):
        pass

    def resume_clock(self):
        pass

    def say(self, line):
        pass

    def close(self):
        pass
