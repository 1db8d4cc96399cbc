"""The training loop, readable top to bottom. A world of one or of many is the same path.

`train` sets the scene, `_loop` repeats, `Trainer.step` is one optimizer step. Nothing random is state: the
order of the data, its masks and dropout are pure functions of (seed, step).
"""

import math
from collections.abc import Collection
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from hvd_llm import device, folders, mesh, models, optimizer, provenance, routing, runfolder, update
from hvd_llm.comm import Comm
from hvd_llm.comm.clock import clock_offset
from hvd_llm.config import Config
from hvd_llm.data import Batches, Dataset, open_dataset, targets, tokens
from hvd_llm.drift import fingerprint
from hvd_llm.errors import UserError
from hvd_llm.evaluate import Score, evaluate
from hvd_llm.hints import hints
from hvd_llm.metrics import Metrics, Silence
from hvd_llm.reduce.pricing import rehearse
from hvd_llm.reduce.sender import Route
from hvd_llm.state import State
from hvd_llm.totals import Totals
from hvd_llm.trace import NoTrace, Trace, now


def train(config: Config, name: str, comm: Comm) -> Path:
    """Train what `config` says on all ranks of `comm`; return the run folder. Collective.

    Args:
        name: of the configuration; names the run folder unless `run.dir` does.

    Raises:
        UserError: the same on every rank.
    """
    with comm.together("find the device"):
        where = device.choose(config.run.device, comm.local_rank)
    machines = comm.gather_objects("machines", provenance.machine(where))
    sharing = provenance.sharing(machines, comm.rank)
    threads = device.use_threads(config.run.threads, sharing)
    device.keep_freed_memory()
    with comm.together("read the data, build the model"):
        dataset = open_dataset(config.data.path)
        training, validation = (batches(config, dataset, split) for split in ("train", "validation"))
        if comm.size > config.train.global_batch:
            raise UserError(f"train.global_batch is {config.train.global_batch}, fewer than the {comm.size} ranks")
        model = models.build(config, dataset.vocabulary, dataset.labels, dataset.tokenizer()).to(where)
        among = routing.allowed(config)
    comm.require_same("configuration", asdict(replace(config, run=replace(config.run, dir="", threads=0))))
    comm.require_same("kind of device", where.type)  # compressors code numbers in pieces that suit it
    comm.require_same("prepared data", dataset.fingerprint)
    steps = config.train.steps or math.ceil(config.train.epochs * training.steps_per_epoch)
    ranks = mesh.build(comm.rank, [machine["host"] for machine in machines])
    comm.register(ranks.named({group for compressor in among for group in compressor.groups}))
    with comm.together("try the compressor"):
        for compressor in among:
            rehearse(compressor, comm.size, len(ranks.node.ranks))

    run = Path(comm.broadcast_object("run.dir", config.run.dir or str(folders.default(name, comm.size))))
    with runfolder.claimed(run, comm):
        same = {compressor.kept(slot) for compressor in among for slot in compressor.same}
        state = _start_or_resume(run, config, dataset, model, comm, same)
        if state.progress.step > steps:
            raise UserError(f"{run} has trained {state.progress.step} steps already, more than {steps}", shared=True)
        launch, witness = 0, Silence()
        if comm.rank == 0:
            about = provenance.launch(state.progress.step, machines, comm, threads)
            launch = runfolder.add_launch(run, about, config)
            witness = _witness(run, config, comm, state, steps)
            sequences = training.samples, validation.samples
            for hint in hints(config, steps, comm, where.type, threads, sharing, *sequences):
                witness.say(hint)
        launch = comm.broadcast_object("launch", launch)
        with closing(witness), closing(_open_trace(config, run / "trace" / f"launch-{launch}", comm)) as trace:
            trainer = Trainer(config, comm, state, ranks, training, validation, among, steps, trace)
            with comm.together("write run.json"):
                if comm.rank == 0:
                    runfolder.note(run, launch, {"compressors": trainer.plan.shares(state.parameters)})
            if trainer.plan.why:
                witness.say(trainer.plan.why)
            _loop(trainer, run, witness)
    return run


def _start_or_resume(
    run: Path, config: Config, dataset: Dataset, model: nn.Module, comm: Comm, same: Collection[str]
) -> State:
    """Make the run folder, or continue from its newest checkpoint; the same state on all ranks. Collective."""
    resume = None
    with comm.together("open the run folder"):
        if comm.rank == 0:
            resume = runfolder.start(run, config, dataset, model)
    resume = comm.broadcast_object("resume", resume and str(resume))
    state = State(config, model)
    with comm.together("load the checkpoint"):
        if resume:
            state.restore(Path(resume), comm.rank, comm.size, same)
    comm.require_same("checkpoint", [asdict(state.progress), int(fingerprint(state.snapshot().optimizer))])
    comm.broadcast(models.tensors(model))
    return state


def _witness(run: Path, config: Config, comm: Comm, state: State, steps: int) -> Metrics:
    """Rank 0's metrics, which begin with what is going to be done."""
    peak = device.peak_flops(next(state.model.parameters()).device, config.train.precision) * comm.size
    flops, progress = runfolder.read(run)["model"]["flops_per_token"], state.progress
    plain_mb = 2 * (comm.size - 1) / comm.size * sum(p.nbytes for p in state.parameters.values()) / 1e6
    witness = Metrics(run, progress.step, steps, flops, peak, progress.skipped, plain_mb)
    parameters = sum(map(Tensor.numel, state.model.parameters()))
    ranks = f"{comm.size} rank{'s' if comm.size > 1 else ''}"
    done = progress.step
    resumed = ", all done already" if done == steps else f", continuing after step {done}" if done else ""
    witness.say(f"{run}: {parameters:,} parameters, {ranks}, {steps} steps{resumed}")
    return witness


def _loop(trainer: "Trainer", run: Path, witness: Metrics) -> None:
    config, progress = trainer.config, trainer.state.progress
    give_up = 0 < config.evaluate.patience <= progress.evaluations_since_best
    if trainer.update.unfinished and (give_up or progress.step == trainer.steps):  # saved before it was the end
        trainer.update.end()
        trainer.save(run)
    while progress.step < trainer.steps and not give_up:
        row, count = trainer.step()
        last = progress.step == trainer.steps
        logs = last or _due(progress.step, config.train.log_every)
        witness.step(progress.step, logs, row, count, trainer.sent_bytes)

        evaluates = last or _due(progress.step, config.evaluate.every)
        checks = _due(progress.step, config.train.drift_check_every)
        improved = False
        if checks:  # before a checkpoint that would keep what is wrong
            trainer.check_drift()
        if evaluates:
            witness.evaluation(progress.step, trainer.evaluate())
            improved = progress.best_step == progress.step
            give_up = 0 < config.evaluate.patience <= progress.evaluations_since_best
        if give_up and not last:
            trainer.update.end()
        saves = last or give_up or _due(progress.step, config.checkpoint.every) or (improved and config.checkpoint.best)
        if saves:
            trainer.save(run)
        if evaluates or checks or saves:
            witness.resume_clock()  # none of it is training
        trainer.trace.flush()
    if give_up:
        witness.say(f"step {progress.step}: no better score in {config.evaluate.patience} evaluations, stopping")


class Trainer:
    """One rank's part in training: what is done in a step, and between steps."""

    def __init__(self, config, comm, state, ranks, training, validation, among, steps, trace):
        self.config: Config = config
        self.comm: Comm = comm
        self.state: State = state
        self.training: Batches = training
        self.validation: Batches = validation
        self.steps: int = steps
        self.trace: Trace = trace
        self.device = next(state.model.parameters()).device
        # Keeps fp16 in range; the exact division, by the number of targets, follows the sum over ranks. A full batch
        # of a causal model has just so many.
        per_sequence = 1 if config.data.task == "classify" else config.data.sequence_length - 1
        self.nominal = training.global_batch * per_sequence
        self.totals = Totals(comm, state.progress, config.sync, steps)
        self._hashes = comm.allocate(comm.size, torch.int64, torch.device("cpu"))
        if config.train.activation_checkpointing:
            models.enable_activation_checkpointing(state.model)
        if config.train.compile:
            models.compile_blocks(state.model)
        state.model.train()
        groups = {"world": ranks.world, "node": ranks.node, "across": ranks.across}
        self.route = Route(comm, groups, trace, config.run.seed)
        self.plan = routing.plan(config, self.route, state, among, self.rehearse)
        self.update = update.build(config, state, self.plan, self.route)
        self.reducer = self.update.reducer

    @property
    def sent_bytes(self) -> float:
        """What this rank has sent for gradients or weights so far; nothing where ranks share memory."""
        return 0.0 if self.comm.shares_memory else self.route.tally.sent_bytes

    def step(self) -> tuple[dict, int]:
        """One optimizer step; returns a row of metrics and the number of input tokens, both over all ranks.

        While ranks train apart, the loss is this rank's own, but for a round's last step: that has the round's.
        """
        config, comm, progress, trace = self.config, self.comm, self.state.progress, self.trace
        trace.begin(progress.step)
        self._seed(progress.step)
        alone = self.update.begin(progress.step)
        exact = optimizer.exact(config, progress.step)
        lr = optimizer.learning_rate(config.optimizer, progress.step, self.steps)
        self.reducer.start(progress.step, self.state.loss_scale.value, alone, exact)

        with trace.span("input"):
            mine = self.training.micro_batches(progress.step, comm.rank, comm.size, config.train.micro_batch)
            counts = sum(map(targets, mine)), sum(map(tokens, mine))
        loss_total, sums = torch.zeros((), device=self.device), None
        for index, batch in enumerate(mine):
            with trace.span("forward", index):
                loss = self._loss(batch)
                loss_total += loss.detach()
            if index == len(mine) - 1:
                sums = self.totals.share(alone, loss_total, *counts)
                self.reducer.last_pass()
            with trace.span("backward", index):
                (loss * (self.state.loss_scale.value / self.nominal)).backward()
        sums = sums or self.totals.share(alone, loss_total, *counts)  # where no sequence of this batch is ours
        self.reducer.finish()
        with trace.span("exposed"):  # ranks that train apart meet here
            loss_sum, all_targets, all_tokens = self.reducer.wait(sums).tolist()

        row = self.update.take(self.nominal / max(1.0, counts[0] if alone else all_targets), exact, lr)
        progress.step += 1
        progress.tokens += int(all_tokens)
        if progress.step == self.steps:
            self.update.end()
        trace.end(amount=counts[1])
        # A batch whose every label is missing has no loss.
        row |= {"loss": loss_sum / max(1.0, all_targets), "tokens": progress.tokens}
        return row, counts[1] * comm.size if alone else int(all_tokens)  # apart, the others are taken to be like us

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross entropy summed over the targets of one micro-batch."""
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        with self._autocast():
            return models.loss_sum(self.state.model, batch, self.config.train.label_smoothing)[0]

    def evaluate(self) -> Score:
        """Score the validation split."""
        began, config = now(), self.config
        self.update.settle()
        task, micro_batch, limit = config.data.task, config.train.micro_batch, config.evaluate.batches
        with self._autocast(), self.update.agreeing():
            score, count = evaluate(self.state.model, self.validation, task, self.comm, micro_batch, limit)
        self.state.progress.note(score)
        self.trace.add("evaluate", began, now(), amount=count)
        return score

    def save(self, run: Path) -> None:
        """Write a checkpoint, delete those that are no longer wanted."""
        began = now()
        self.remember()
        size = runfolder.save(run, self.state, self.training.dataset, self.config.checkpoint, self.comm)
        self.trace.add("checkpoint", began, now(), amount=size)

    def remember(self) -> None:
        """Bring `state` up to date with what is kept or still under way elsewhere."""
        self.totals.remember()
        self.update.remember()

    def check_drift(self) -> None:
        """Compare a hash of the weights across ranks.

        Raises:
            UserError: the replicas are no longer the same model.
        """
        self.update.settle()
        self._hashes.zero_()
        with self.update.agreeing():
            self._hashes[self.comm.rank] = fingerprint(self.state.parameters)
        hashes = self.comm.sum("drift", self._hashes).tolist()
        odd = [rank for rank, value in enumerate(hashes) if value != hashes[0]]
        if odd:
            raise UserError(
                f"after step {self.state.progress.step} the weights of ranks {odd} differ from rank 0's (bad memory, "
                "unlike machines, or a compressor that does not return the same on all ranks?); continue from the last "
                "checkpoint with --resume auto",
                shared=True,
            )

    def rehearse(self) -> None:
        """A forward and a backward pass on the first micro-batch of rank 0."""
        self._seed(0)
        batch = self.training.micro_batches(0, 0, self.comm.size, self.config.train.micro_batch)[0]
        self._loss(batch).backward()

    def _seed(self, step: int) -> None:
        """Make dropout a pure function of (seed, step, rank)."""
        seed = ((self.config.run.seed * 1_000_003 + step) * 65_537 + self.comm.rank) % 2**63
        # torch.manual_seed would also write down, with the stack it was called from, a seed for the case that a GPU is
        # ever used: a third of a millisecond in each step.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _autocast(self):
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.config.train.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)


def batches(config: Config, dataset: Dataset, split: str) -> Batches:
    """The batches of one split, as `config` wants them; only training data is shuffled."""
    return Batches(
        dataset,
        split,
        config.data.task,
        sequence_length=config.data.sequence_length,
        global_batch=config.train.global_batch,
        seed=config.run.seed,
        mask_rate=config.data.mask_rate,
        whole_word=config.data.whole_word,
        shuffle=split == "train",
    )


def _open_trace(config: Config, folder: Path, comm: Comm) -> Trace:
    """This rank's trace, which begins with how far its clock is from rank 0's. Collective."""
    if not config.trace.enabled:
        return NoTrace()
    trace = Trace(folder / f"rank-{comm.rank:05d}.trace", comm.rank, comm.size)
    if config.trace.horovod_timeline:
        comm.start_timeline(folder / "horovod_timeline.json")
    offset, uncertainty = clock_offset(comm)
    moment = now()
    trace.add("clock", moment - uncertainty, moment + uncertainty, amount=offset)
    return trace


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
