"""Every knob, once: nested dataclasses with unit and default.

A TOML file fills them, `--section.key value` overrides them, `check` refuses what contradicts itself.
The text under each field is what `hvd-llm train --help` prints.
"""

import dataclasses
import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from hvd_llm.contradictions import check
from hvd_llm.errors import UserError, nearest

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_section = dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))


@_section
class Run:
    dir: str = ""
    """Folder for run.json, trace/, metrics.csv, checkpoints/. Empty: runs/CONFIG-nRANKS-TIME."""
    resume: Literal["never", "auto"] = "never"
    """auto: continue from the newest whole checkpoint in `dir`, or start when there is none."""
    seed: Count = 1
    """Decides initial weights, data order and dropout; the same seed gives the same bits (but not with
    `auto`, which goes by what it measures)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA when there is a GPU, one rank for each, chosen by local rank."""
    threads: Count = 0
    """CPU threads of each rank. 0: the machine's cores divided among its ranks."""


@_section
class Data:
    path: str = "data/embedded"
    """Folder written by `hvd-llm prepare`."""
    task: Literal["causal", "masked", "classify", "tag"] = "causal"
    """causal and masked language models, a label per document, a label per token."""
    sequence_length: Positive = 256
    """Tokens in a sequence (the longest one for classify and tag)."""
    mask_rate: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.15
    """masked: share of tokens to predict; of these 80 % are masked, 10 % random, 10 % kept."""
    whole_word: bool = False
    """masked: choose whole words rather than single tokens."""


@_section
class Model:
    family: Literal["gpt2", "bert", "llama"] = "gpt2"
    """Architecture, as `transformers` builds it."""
    pretrained: str = ""
    """Local folder with config.json and safetensors; replaces every other key here but dropout."""
    layers: Positive = 4
    """Transformer blocks."""
    hidden: Positive = 256
    """Width of the residual stream."""
    heads: Positive = 4
    """Attention heads; must divide hidden."""
    kv_heads: Count = 0
    """llama: key and value heads (grouped-query attention). 0: as many as heads."""
    intermediate: Count = 0
    """Width of the feed-forward layer. 0: 4 x hidden (llama: 8/3 x hidden, rounded up to 64)."""
    positions: Count = 0
    """Longest sequence the model can take. 0: data.sequence_length."""
    dropout: Share = 0.0
    """Dropout probability of embeddings, attention and residuals."""


@_section
class Train:
    steps: Count = 0
    """Optimizer steps. Give this or epochs."""
    epochs: NonNegativeFloat = 0
    """Passes over the training data. Give this or steps."""
    global_batch: Positive = 32
    """Sequences per optimizer step over all ranks: the order of data does not depend on their number."""
    micro_batch: Positive = 8
    """Sequences per forward pass of one rank; what is left of its share is accumulated."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast of forward and backward; weights stay fp32. fp16 scales its loss dynamically."""
    activation_checkpointing: bool = False
    """Keep only the blocks' inputs and compute the rest again in backward: less memory, more time."""
    compile: bool = False
    """torch.compile the model: a slow first step, then faster ones."""
    label_smoothing: Share = 0.0
    """Share of the target's probability that is spread over the vocabulary."""
    log_every: Positive = 10
    """Steps between rows of metrics.csv and TensorBoard."""
    drift_check_every: Count = 100
    """Steps between comparisons of a parameter hash across ranks. 0: never."""


@_section
class Optimizer:
    name: Literal["adamw", "zero_one_adam", "sgd"] = "adamw"
    """adamw; zero_one_adam, which is adamw for compressed gradients; or sgd with momentum."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    beta1: Share = 0.9
    """Decay of the first moment; sgd: momentum."""
    beta2: Share = 0.95
    """Decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    kappa: Positive = 16
    """zero_one_adam: the second moment moves, on gradients sent as they are, this often in every step, then as often in
    every 2nd, every 4th, …"""
    weight_decay: NonNegativeFloat = 0.1
    """Decay of matrices (decoupled but in sgd); biases, norms and other vectors have none."""
    clip_norm: NonNegativeFloat = 1.0
    """Largest global gradient norm. 0: no clipping."""
    clip_by: Literal["this", "last"] = "this"
    """Which step's norm decides on clipping; the last step's is known before this step's gradients are."""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """What follows the warm-up; wsd stays at the peak, then falls linearly."""
    warmup: Fraction = 0.05
    """Share of the steps that the learning rate climbs to its peak."""
    decay: Fraction = 0.2
    """wsd: share of the steps that it falls at the end."""
    final_lr: Fraction = 0.1
    """Learning rate at the end, as a share of the peak."""


@_section
class Reduce:
    compressor: str = "none"
    """How gradients are sent, with options as in "topk(keep=32)"; `hvd-llm compressors` lists them. auto: a probe of
    the network, the kernels and the model chooses for each bucket; auto(among='int8 onebit') none or one of those,
    the first of them if several are as fast; auto(hierarchical=true) also each of them across hosts only, for hosts
    with several ranks."""
    warmup_steps: Count = 0
    """First steps, in which gradients are sent as they are: compress when the learning rate has settled."""
    bucket_mb: PositiveFloat = 4.0
    """Size of a flat gradient bucket in MiB; a bucket is one operation on the network."""
    cycle_ms: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 0
    """Horovod looks for new operations this often, in ms, and when there is one. 0: 1 with GPUs, else 100; 10 with
    groups of ranks (hierarchical), or where `hvd-llm install-horovod` did not build it and it does not wake up."""
    overlap: Literal["none", "backward", "forward"] = "backward"
    """Without delay, what hides the exchange: nothing; backward; also the next forward, each layer of which waits for
    its update."""
    delay: Annotated[int, Field(ge=0, le=1)] = 0
    """1: sums are taken up one step later, so that a whole step hides the exchange; until then each rank goes ahead by
    its own gradient. Costs a second update in each step, and memory for gradients, weights and moments once more."""
    rows: bool = True
    """Between hosts, without compressor or delay: gradients of embeddings are sent by rows, those of tokens that
    occurred."""
    share_memory: bool = True
    """If all ranks are on one host, they sum CPU gradients in memory they share; false: through MPI or Gloo."""

    @property
    def automatic(self) -> bool:
        """Whether compressors are chosen by a probe."""
        return self.compressor.partition("(")[0].strip() == "auto"


@_section
class Sync:
    every: Positive = 1
    """Steps between exchanges. 1: gradients, every step; more: ranks train apart, then exchange how far they came."""
    after: Count = 0
    """First steps, in which gradients are exchanged in every step all the same, uncompressed."""
    outer_lr: PositiveFloat = 1.0
    """Outer learning rate. 1, with outer_momentum 0, is local SGD: the mean of the weights. DiLoCo's are 0.7 and 0.9,
    with which runs of few exchanges end far worse."""
    outer_momentum: Share = 0.0
    """Nesterov momentum of the outer steps."""
    fragments: Positive = 1
    """Parts of the model that are exchanged in turn, at even distances within `every` steps (streaming DiLoCo)."""
    delay: Count = 0
    """Steps after which an exchange is taken up, to hide it behind them; fewer than `every`."""
    mix: Share = 0.5
    """Share of its own weights a rank keeps when it takes up a delayed exchange; at 0 it forgets the steps since."""
    late: Literal["mix", "add"] = "mix"
    """With a delay: "mix" own weights with what arrives (streaming DiLoCo), or "add" to it the steps since (DaSGD)."""


@_section
class Checkpoint:
    every: Count = 100
    """Steps between checkpoints; the last step always writes one. 0: only the last."""
    keep: Positive = 2
    """Newest checkpoints to keep."""
    best: bool = True
    """Also keep the checkpoint with the best validation score."""


@_section
class Evaluate:
    every: Count = 100
    """Steps between evaluations on the validation split; the last step always has one. 0: only the last."""
    batches: Count = 20
    """Validation batches of train.global_batch sequences. 0: the whole split."""
    patience: Count = 0
    """Stop after this many evaluations without a better score. 0: never."""


@_section
class Trace:
    enabled: bool = True
    """Write trace/, one file per rank: the raw material of every report."""
    horovod_timeline: bool = False
    """Also record Horovod's own timeline (large; rank 0). What is summed in shared memory is not in it."""


@_section
class Config:
    """What a run is: saved, resolved, in its run.json."""

    run: Run = Run()
    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    optimizer: Optimizer = Optimizer()
    reduce: Reduce = Reduce()
    sync: Sync = Sync()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
    trace: Trace = Trace()


_ADAPTER = TypeAdapter(Config)


def shipped() -> dict[str, Path]:
    """Names and files of the configurations that come with the package."""
    folder = Path(str(resources.files("hvd_llm") / "configs"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load(name: str, overrides: dict[str, str] | None = None) -> Config:
    """Read a shipped configuration or a TOML file, apply `{"section.key": "value"}`, and check it.

    Raises:
        UserError: no such file, malformed TOML, unknown or contradictory settings.
    """
    path = Path(name)
    if path.suffix != ".toml":
        if name not in shipped():
            raise UserError(f"there is no configuration {name!r}{nearest(name, shipped())} (or give a .toml file)")
        path = shipped()[name]
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read the configuration {path}: {error}") from None
    for key, value in (overrides or {}).items():
        section, _, name = key.partition(".")
        if not isinstance(tree.setdefault(section, {}), dict):
            raise UserError(f"{path}: {section!r} must be a table of settings, not {tree[section]!r}")
        tree[section][name] = value
    return resolve(tree)


def resolve(tree: dict[str, Any]) -> Config:
    """Turn nested plain values into a checked `Config`; strings are converted to each field's type.

    Raises:
        UserError: an unknown name (with the nearest valid one), a wrong type or range, a contradiction.
    """
    try:
        config = _ADAPTER.validate_python(tree)
    except ValidationError as error:
        raise UserError(_sentence(error.errors()[0])) from None
    check(config)
    return config


def _sentence(problem: dict) -> str:
    """One sentence for one of pydantic's problems."""
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        *parents, name = problem["loc"]
        owner: Any = Config
        for parent in parents:
            owner = {field.name: field.type for field in dataclasses.fields(owner)}[parent]
        kind = "setting" if parents else "section"
        if elsewhere := named(str(name)):
            return f"there is no {kind} {where!r}; did you mean {' or '.join(map(repr, elsewhere))}?"
        return f"there is no {kind} {where!r}{nearest(str(name), [field.name for field in dataclasses.fields(owner)])}"
    reason = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{where} is {problem['input']!r}: {reason}"


def named(key: str) -> list[str]:
    """The settings, as "section.key", whose key this is, whatever the section."""
    sections = {section.name: dataclasses.fields(section.type) for section in dataclasses.fields(Config)}
    *_, key = key.replace("-", "_").split(".")
    return [f"{section}.{field.name}" for section, fields in sections.items() for field in fields if field.name == key]


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """The resolved configuration as nested plain values, ready for JSON and for `resolve`."""
    return dataclasses.asdict(config)


def help_text() -> str:
    """Every setting with its default and meaning, one per line, by section."""
    lines = []
    for section in dataclasses.fields(Config):
        lines.append(f"\n[{section.name}]")
        fields = section.type.__pydantic_fields__
        for name, field in fields.items():
            allowed = getattr(field.annotation, "__args__", None)
            choice = f" ({' | '.join(map(str, allowed))})" if allowed else ""
            lines.append(f"  --{section.name}.{name} {json.dumps(field.default)}{choice}")
            lines.append(f"      {field.description}")
    return "\n".join(lines)
