"""Settings that do not go together, and what to set instead."""

from typing import TYPE_CHECKING

from hvd_llm.errors import UserError

if TYPE_CHECKING:
    from hvd_llm.config import Config


def check(config: "Config") -> None:
    """Refuse settings that contradict each other.

    Raises:
        UserError: names the settings, their values and what would be allowed.
    """
    model, data, train = config.model, config.data, config.train
    rules = [
        (
            not model.pretrained and model.hidden % model.heads,
            f"model.heads is {model.heads}, which does not divide model.hidden = {model.hidden}",
        ),
        (
            model.kv_heads and (model.family != "llama" or model.heads % model.kv_heads),
            f"model.kv_heads is {model.kv_heads}: it needs family 'llama' and must divide model.heads = {model.heads}",
        ),
        (
            model.positions and model.positions < data.sequence_length,
            f"data.sequence_length is {data.sequence_length}, longer than model.positions = {model.positions}",
        ),
        (
            not model.pretrained and data.task == "masked" and model.family != "bert",
            f"data.task is 'masked', which needs model.family 'bert', not {model.family!r}",
        ),
        (
            not model.pretrained and data.task == "causal" and model.family == "bert",
            "data.task is 'causal', which needs model.family 'gpt2' or 'llama', not 'bert'",
        ),
        (data.whole_word and data.task != "masked", "data.whole_word needs data.task 'masked'"),
        (data.sequence_length < 3, f"data.sequence_length is {data.sequence_length}; at least 3 hold a target"),
        (
            bool(train.steps) == bool(train.epochs),
            f"give one of train.steps and train.epochs, the other as 0 (they are {train.steps} and {train.epochs:g})",
        ),
        (
            config.optimizer.schedule == "wsd" and config.optimizer.warmup + config.optimizer.decay > 1,
            f"optimizer.warmup + optimizer.decay is {config.optimizer.warmup + config.optimizer.decay:g}; at most 1",
        ),
        *_apart(config),
        *_late(config),
        *_delayed(config),
        (config.trace.horovod_timeline and not config.trace.enabled, "trace.horovod_timeline needs trace.enabled"),
        (
            config.run.resume == "auto" and not config.run.dir,
            "run.resume is 'auto', but which run? name its folder with --out (run.dir)",
        ),
        (
            config.evaluate.patience and not config.evaluate.every,
            f"evaluate.patience is {config.evaluate.patience}, but nothing is evaluated: evaluate.every is 0",
        ),
        (
            train.compile and train.activation_checkpointing,
            "train.compile and train.activation_checkpointing cannot be used together",
        ),
    ]
    for wrong, sentence in rules:
        if wrong:
            raise UserError(sentence)


def _late(config: "Config") -> list[tuple[bool, str]]:
    """What does not go together when layers are updated during the next forward pass."""
    late = config.reduce.overlap == "forward"
    return [
        (
            late and config.optimizer.clip_norm > 0 and config.optimizer.clip_by == "this",
            "reduce.overlap is 'forward', which updates the first layers before the norm of all gradients is known: "
            "set optimizer.clip_norm to 0, or optimizer.clip_by to 'last'",
        ),
        (
            late and config.sync.every > 1,
            "reduce.overlap is 'forward', which is for gradients; with sync.every > 1, sync.delay hides the exchange",
        ),
        (
            late and config.train.precision == "fp16",
            "reduce.overlap is 'forward' and train.precision 'fp16', whose loss scale is known late: take 'bf16'",
        ),
        (late and config.train.compile, "reduce.overlap is 'forward', whose waiting layers train.compile cannot take"),
    ]


def _delayed(config: "Config") -> list[tuple[bool, str]]:
    """What does not go together when gradients are taken up one step later."""
    delayed = config.reduce.delay > 0
    return [
        (
            delayed and config.reduce.overlap == "forward",
            "reduce.delay is 1, so a whole step hides the exchange: reduce.overlap cannot be 'forward' besides",
        ),
        (
            delayed and config.sync.every > 1,
            "reduce.delay is 1, which is for gradients; with sync.every > 1 it is sync.delay that hides the exchange",
        ),
        (
            delayed and config.reduce.automatic,
            "reduce.compressor is 'auto', which judges what a step waits for; with reduce.delay = 1, name a compressor",
        ),
        (
            delayed and config.train.precision == "fp16",
            "reduce.delay is 1 and train.precision 'fp16', whose loss scale is known late: take 'bf16'",
        ),
        (
            delayed and config.train.compile,
            "reduce.delay is 1, which looks after the network between layers: train.compile cannot take that",
        ),
    ]


def _apart(config: "Config") -> list[tuple[bool, str]]:
    """What does not go together when ranks train apart."""
    sync, train = config.sync, config.train
    return [
        (
            bool(config.reduce.warmup_steps) and sync.every > 1,
            f"reduce.warmup_steps is {config.reduce.warmup_steps}; with sync.every > 1 that is what sync.after is for",
        ),
        (
            config.reduce.automatic and sync.every > 1,
            "reduce.compressor is 'auto', which judges exchanges in every step; with sync.every > 1, name a compressor",
        ),
        (
            sync.every > 1 and config.optimizer.clip_by == "last",
            f"optimizer.clip_by is 'last', which hides no exchange with sync.every = {sync.every}: set it to 'this'",
        ),
        (sync.late == "add" and not sync.delay, "sync.late is 'add', but nothing is late: sync.delay is 0"),
        (
            sync.delay >= sync.every,
            f"sync.delay is {sync.delay}; it must be less than sync.every = {sync.every}",
        ),
        (
            sync.fragments > sync.every,
            f"sync.fragments is {sync.fragments}; at most sync.every = {sync.every} have a turn each",
        ),
        (
            sync.every > 1 and train.precision == "fp16",
            "train.precision is 'fp16', whose loss scale would differ among ranks that train apart; take 'bf16'",
        ),
        (
            sync.every > 1 and config.optimizer.name == "zero_one_adam",
            "optimizer.name is 'zero_one_adam', whose second moment must be the same on all ranks, which train apart "
            f"with sync.every = {sync.every}; take 'adamw'",
        ),
    ]
