"""What a compressor is: a generator that yields what it wants communicated.

    @compressor
    def none(gradient, state, at):
        return (yield Sum(gradient))

A driver runs it: it carries out each request among the ranks of a group and sends the answer back into
the generator, whose return value is the sum over the group, shaped like `gradient` and the same on all ranks.
The generator knows no transport, so the same code runs over Horovod, on simulated ranks, or to be priced.

- `gradient` is a bucket, (elements,), or (count, rows, columns) for one that takes matrices. The generator may
  overwrite it. If `at.feedback`, it must leave in it what it has not sent: the sum of what is returned and of what
  all ranks kept is the sum of what they gave.
- `state` holds the generator's tensors between steps. They are kept by parameter, so their first dimension is
  that of `gradient`. Replace them, never write into them: a step that is skipped takes the old ones back. What was
  not sent is called "error": whoever takes over from this generator sends that, and nothing else.
- `at` says where and when: rank, size, step; `at.within(group)` the same within a group.
- What is returned may lie anywhere; in `at.result(gradient)` it need not be copied into the bucket.

A tensor that was yielded belongs to the driver, which may overwrite it.
"""

import dataclasses
import inspect
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from hvd_llm.compress.feedback import with_feedback
from hvd_llm.errors import UserError


@dataclass(frozen=True)
class Sum:
    """Answer: the sum of every rank's tensor. All have one shape and dtype."""

    tensor: Tensor
    group: str = "world"

    @property
    def payload_bytes(self) -> int:
        return self.tensor.nbytes


@dataclass(frozen=True)
class Gather:
    """Answer: the list of every rank's tensor, by group rank. All have one dtype and, without `lengths`, one shape.

    Attributes:
        lengths: of every rank's tensor (1-D), where they differ.
    """

    tensor: Tensor
    group: str = "world"
    lengths: Sequence[int] | None = None

    @property
    def payload_bytes(self) -> int:
        return self.tensor.nbytes


@dataclass(frozen=True)
class AllToAll:
    """Tensor i (1-D) goes to group rank i. Answer: the list of what came, by group rank.

    Attributes:
        lengths: of what comes, by group rank, if it is known.
    """

    tensors: Sequence[Tensor]
    group: str = "world"
    lengths: Sequence[int] | None = None

    @property
    def payload_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


Request = Sum | Gather | AllToAll
State = dict[str, Tensor]


@dataclass(frozen=True)
class At:
    """Where and when an exchange takes place.

    Attributes:
        name: of the gradient, the same on all ranks.
        rank, size: of the group that exchanges.
        step: from 0.
        feedback: whether what `gradient` holds in the end is kept for the next step.
        groups: rank and size in each group, by name.
        free: memory that nobody needs until the generator returns, if there is any.
    """

    name: str = ""
    rank: int = 0
    size: int = 1
    step: int = 0
    seed: int = 0
    feedback: bool = False
    groups: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    free: Tensor | None = field(default=None, compare=False, repr=False)

    def within(self, group: str) -> "At":
        rank, size = self.groups[group]
        return dataclasses.replace(self, rank=rank, size=size, groups={}, free=None)

    def result(self, gradient: Tensor) -> Tensor:
        """Memory like `gradient` for the result, to be asked for once. It may be `gradient`'s own: look there first."""
        if not self.feedback:
            return gradient
        fits = self.free is not None and (self.free.shape, self.free.dtype) == (gradient.shape, gradient.dtype)
        return self.free if fits else torch.empty_like(gradient)

    def generator(self, device: torch.device, *, everyone: bool) -> torch.Generator:
        """A source of random numbers that depends on nothing but this; the same for everyone, or for each rank its own.

        It leaves torch's own alone, from which dropout draws.
        """
        key = f"{self.seed}/{self.name}/{self.step}/{'' if everyone else self.rank}"
        return torch.Generator(device).manual_seed(zlib.crc32(key.encode()))


Exchange = Generator[Request, Any, Tensor]


@dataclass(frozen=True)
class Compressor:
    """A generator function with its options set.

    Attributes:
        takes: "flat" buckets, or "matrices": those of one shape, stacked; there may be none of them.
        same: slots of the state that are equal on all ranks. The others are sums of which each rank has a part:
            when the number of ranks changes, they are added up.
        groups: names of the groups it asks for besides "world".
        dense: whether it sends gradients as they are, so that every parameter may go through it.
        sums: whether what it returns is, or approaches, the sum. One that combines gradients in another way gets those
            of every parameter, vectors too.
    """

    function: Callable[..., Exchange]
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    takes: Literal["flat", "matrices"] = "flat"
    same: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    dense: bool = False
    sums: bool = True

    def __call__(self, gradient: Tensor, state: State, at: At) -> Exchange:
        options = dict(self.options)
        decay = float(options.pop("feedback", 0))
        at = dataclasses.replace(at, free=None)  # one that runs others has it for its own result
        if not decay:
            return self.function(gradient, state, at, **options)
        return with_feedback(self.function, decay)(gradient, state, at, **options)

    @property
    def defaults(self) -> dict[str, Any]:
        """The options that can be set, with their values."""
        parameters = list(inspect.signature(self.function).parameters.values())[3:]
        return {parameter.name: parameter.default for parameter in parameters} | dict(self.options)

    @property
    def feeds_back(self) -> bool:
        """Whether what was not sent in a step is added to the gradient of the next."""
        return bool(self.options.get("feedback", 0))

    @property
    def own_momentum(self) -> float:
        """Its option `momentum`, or that of one that it wraps; 0 without. An optimizer's would be a second one."""
        wrapped = [value.own_momentum for value in self.defaults.values() if isinstance(value, Compressor)]
        own = self.defaults.get("momentum")
        number = isinstance(own, int | float) and not isinstance(own, bool)
        return max([float(own) if number else 0.0, *wrapped])

    def check(self, result: Any, shape: torch.Size) -> None:
        """See that a generator returned a sum of that shape.

        Raises:
            UserError: it did not.
        """
        if not isinstance(result, Tensor) or result.shape != shape:
            what = str(list(result.shape)) if isinstance(result, Tensor) else repr(result)
            raise UserError(
                f"compressor {self} returns {what:.80} for a gradient of {list(shape)}, and not a sum of that shape"
            )

    @property
    def summary(self) -> str:
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    def kept(self, slot: str) -> str:
        """What a slot of the state is called in a checkpoint, where others may have other slots of that name.

        An error that is fed back is an error, whoever made it.
        """
        return slot if slot == "error" and self.feeds_back else f"{self._keeper}.{slot}"

    def slot(self, kept: str) -> str | None:
        """Undo `kept`; None if it is not this one's."""
        if kept == "error":
            return kept if self.feeds_back else None
        name, _, slot = kept.rpartition(".")
        return slot if name == self._keeper else None

    @property
    def _keeper(self) -> str:
        """Its name, and that of one that it wraps, whose slots these are."""
        wrapped = [value._keeper for value in self.defaults.values() if isinstance(value, Compressor)]
        return ".".join([self.name, *wrapped])

    @property
    def text(self) -> str:
        """As `reduce.compressor` names it, with all its options."""
        given = {name: value if isinstance(value, Compressor) else repr(value) for name, value in self.defaults.items()}
        options = ", ".join(f"{name}={value}" for name, value in given.items())
        return f"{self.name}({options})" if options else self.name

    def with_options(self, **options: Any) -> "Compressor":
        """The same with other options; a compressor among them is one that it wraps."""
        found = self
        for option in options.values():
            if isinstance(option, Compressor):
                found = found._wrapping(option)
        return dataclasses.replace(found, options=dict(found.options) | options)

    def _wrapping(self, inner: "Compressor") -> "Compressor":
        """It takes what `inner` takes and keeps the same slots; the error feedback is its own, with `inner`'s decay."""
        options = {name: value for name, value in self.options.items() if name != "feedback"}
        feedback = {name: value for name, value in inner.options.items() if name == "feedback"}
        lent = {"takes": inner.takes, "same": inner.same, "sums": inner.sums}
        return dataclasses.replace(self, options=options | feedback, **lent)

    def __str__(self) -> str:
        return self.text


def compressor(function=None, *, feedback: float | None = None, **attributes):
    """Make a generator function a `Compressor`; its keyword arguments with defaults are its options.

    Args:
        feedback: gives it the option `feedback`, the share of what was not sent that is added to the next gradient,
            with this default (1: all of it, 0: none is kept).
        attributes: `takes`, `same`, `groups`, `dense`, `sums` of `Compressor`.
    """
    if function is None:
        return lambda function: compressor(function, feedback=feedback, **attributes)
    options = {} if feedback is None else {"feedback": float(feedback)}
    return Compressor(function, function.__name__, options, **attributes)
