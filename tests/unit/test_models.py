"""Models: built from settings, their loss, and what the training loop asks of their inside."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hvd_llm import models
from hvd_llm.config import resolve
from hvd_llm.errors import UserError

TOKENIZER = SimpleNamespace(pad_token_id=0, bos_token_id=1, eos_token_id=2)
LABELS = ["one", "two", "three"]
V, T, B = 101, 16, 4
PAIRS = [
    (family, task)
    for family, tasks in {
        "gpt2": ("causal", "classify", "tag"),
        "bert": ("masked", "classify", "tag"),
        "llama": ("causal", "classify", "tag"),
    }.items()
    for task in tasks
]
every_model = pytest.mark.parametrize(("family", "task"), PAIRS)


def settings_of(family: str, task: str, **model):
    return resolve(
        {
            "run": {"seed": 7},
            "data": {"task": task, "sequence_length": T},
            "model": {"family": family, "hidden": 32, "layers": 2, "heads": 4, **model},
            "train": {"steps": 1},
        }
    )


def build(family: str, task: str, **model):
    return models.build(settings_of(family, task, **model), V, LABELS, TOKENIZER)


def batch_for(task: str, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    input_ids_BT = torch.randint(3, V, (B, T), generator=draw)
    chosen_BT = torch.rand((B, T), generator=draw) < 0.3
    labels = {
        "causal": input_ids_BT,
        "masked": torch.where(chosen_BT, input_ids_BT, -100),
        "classify": torch.randint(len(LABELS), (B,), generator=draw),
        "tag": torch.where(chosen_BT, -100, torch.randint(len(LABELS), (B, T), generator=draw)),
    }[task]
    batch = {"input_ids": input_ids_BT, "labels": labels}
    if task in ("classify", "tag"):
        lengths_B = torch.randint(4, T + 1, (B, 1), generator=draw)
        batch["attention_mask"] = (torch.arange(T) < lengths_B).long()
        batch["input_ids"] = input_ids_BT * batch["attention_mask"]
        if task == "tag":
            batch["labels"] = torch.where(batch["attention_mask"] == 1, labels, -100)
    return batch


def gradients(model, batch, label_smoothing=0.0) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    models.loss_sum(model, batch, label_smoothing)[0].backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@every_model
def test_the_loss_is_that_of_transformers_times_its_targets(family, task):
    model, batch = build(family, task), batch_for(task)
    loss, count = models.loss_sum(model, batch)
    labels = batch["labels"][:, 1:] if task == "causal" else batch["labels"]
    assert count == (labels != -100).sum()
    torch.testing.assert_close(loss, model(**batch).loss * count, rtol=1e-5, atol=0)


@every_model
def test_the_gradients_are_those_of_transformers_and_reach_every_parameter(family, task):
    model, batch = build(family, task), batch_for(task)
    ours = gradients(model, batch)
    count = models.loss_sum(model, batch)[1]
    model.zero_grad(set_to_none=True)
    (model(**batch).loss * count).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


@every_model
def test_label_smoothing_is_that_of_torch(family, task):
    model, batch = build(family, task), batch_for(task)
    logits, labels = model(**{k: v for k, v in batch.items() if k != "labels"}).logits, batch["labels"]
    if task == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    expected = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.flatten(), reduction="sum", label_smoothing=0.1
    )
    torch.testing.assert_close(models.loss_sum(model, batch, 0.1)[0], expected, rtol=1e-5, atol=0)


@every_model
def test_predictions_are_the_likeliest_outcomes_at_the_targets(family, task):
    model, batch = build(family, task).eval(), batch_for(task)
    loss, count, predicted_N, labels_N = models.predictions(model, batch)
    assert not loss.requires_grad
    assert predicted_N.shape == labels_N.shape == (count,)
    torch.testing.assert_close(loss, models.loss_sum(model, batch)[0].detach(), rtol=0, atol=0)
    logits, labels = model(**{k: v for k, v in batch.items() if k != "labels"}).logits, batch["labels"]
    if task == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    keep = labels != -100
    assert torch.equal(labels_N, labels[keep])
    assert torch.equal(predicted_N, logits.argmax(-1)[keep])


@given(st.integers(0, 2**32), st.floats(0, 0.5))
@settings(max_examples=20, deadline=None)
def test_the_projection_at_masked_positions_only_is_exact(seed, smoothing):
    model, batch = build("bert", "masked"), batch_for("masked", seed)
    loss, count = models.loss_sum(model, batch, smoothing)
    logits_BTV = model(input_ids=batch["input_ids"]).logits
    expected = F.cross_entropy(
        logits_BTV.flatten(0, 1), batch["labels"].flatten(), reduction="sum", label_smoothing=smoothing
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert count == (batch["labels"] != -100).sum()


@pytest.mark.parametrize(("family", "task"), [("gpt2", "causal"), ("bert", "masked"), ("bert", "tag")])
def test_a_batch_without_targets_gives_zero_gradients(family, task):
    batch = batch_for(task)
    batch["labels"] = torch.full((B, T), -100)
    model = build(family, task)
    loss, count = models.loss_sum(model, batch)
    assert loss == 0
    assert count == 0
    assert all(not gradient.any() for gradient in gradients(model, batch).values())


@every_model
def test_micro_batches_add_up_to_the_batch(family, task):
    model, batch = build(family, task), batch_for(task)
    whole = models.loss_sum(model, batch)
    parts = [models.loss_sum(model, {k: v[i : i + 1] for k, v in batch.items()}) for i in range(B)]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole[0], rtol=1e-5, atol=1e-5)
    assert sum(count for _, count in parts) == whole[1]


@every_model
def test_the_sum_is_fp32_under_autocast(family, task):
    model, batch = build(family, task), batch_for(task)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = models.loss_sum(model, batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, models.loss_sum(model, batch)[0], rtol=0.02, atol=0.02)


@every_model
def test_the_seed_alone_decides_the_weights(family, task):
    torch.manual_seed(1)
    first = build(family, task)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = build(family, task)
    assert torch.equal(before, torch.get_rng_state()), "building drew from the caller's random numbers"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = models.build(resolve(settings_tree(family, task, seed=8)), V, LABELS, TOKENIZER)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def settings_tree(family: str, task: str, seed: int) -> dict:
    return {
        "run": {"seed": seed},
        "data": {"task": task, "sequence_length": T},
        "model": {"family": family, "hidden": 32, "layers": 2, "heads": 4},
        "train": {"steps": 1},
    }


@pytest.mark.parametrize(("family", "task"), [("gpt2", "causal"), ("bert", "masked")])
def test_tied_embeddings_are_one_parameter(family, task):
    model = build(family, task)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    groups = models.decay_groups(model, 0.1)
    together = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(together) == sorted(id(parameter) for _, parameter in model.named_parameters())
    assert len(set(together)) == len(together)


@every_model
def test_decay_groups_split_matrices_from_vectors_in_order(family, task):
    model = build(family, task)
    matrices, vectors = models.decay_groups(model, 0.3)
    named = dict(model.named_parameters())
    assert [id(p) for p in matrices["params"]] == [id(p) for p in named.values() if p.dim() >= 2]
    assert [id(p) for p in vectors["params"]] == [id(p) for n, p in named.items() if p.dim() < 2]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)


@every_model
def test_dropout_reaches_every_dropout_module_and_is_off_in_evaluation(family, task):
    model, batch = build(family, task, dropout=0.25), batch_for(task)
    modules = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert all(module.p == 0.25 for module in modules)
    different = models.loss_sum(model, batch)[0] != models.loss_sum(model, batch)[0]
    assert different, "two forward passes dropped the same"
    model.eval()
    assert models.loss_sum(model, batch)[0] == models.loss_sum(model, batch)[0]
    without = build(family, task)
    assert all(module.p == 0 for module in without.modules() if isinstance(module, torch.nn.Dropout))
    assert models.loss_sum(without, batch)[0] == models.loss_sum(without, batch)[0]


@every_model
def test_activation_checkpointing_gives_the_same_gradients(family, task):
    batch = batch_for(task)
    expected = build(family, task, dropout=0.1)
    recomputing = build(family, task, dropout=0.1)
    models.enable_activation_checkpointing(recomputing)
    torch.manual_seed(3)
    want = gradients(expected, batch)
    torch.manual_seed(3)
    passes = count_forwards(recomputing)
    got = gradients(recomputing, batch)
    assert passes == [2, 2], "each block must run once forward and once again in backward"
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def count_forwards(model) -> list[int]:
    """How often the first linear part of each block runs, updated in place."""
    counts = []
    for number, block in enumerate(models.blocks(model)):
        counts.append(0)
        norm = next(module for module in block.modules() if "Norm" in type(module).__name__)

        def count(*_, number=number):
            counts[number] += 1

        norm.register_forward_hook(count)
    return counts


@pytest.mark.parametrize(
    ("family", "task", "inside", "outside"),
    [
        # Per block: q, k, v and output are 4 h², the feed-forward 2 h × 4 h (llama: 3 h × 128, 8/3 h rounded up).
        ("gpt2", "causal", 4 * 32**2 + 2 * 32 * 128, 32 * V),
        ("bert", "masked", 4 * 32**2 + 2 * 32 * 128, 32 * 32 + 32 * V),
        ("bert", "classify", 4 * 32**2 + 2 * 32 * 128, 32 * 32 + 32 * 3),
        ("bert", "tag", 4 * 32**2 + 2 * 32 * 128, 32 * 3),
        ("llama", "causal", 4 * 32**2 + 3 * 32 * 128, 32 * V),
    ],
)
def test_flops_are_those_counted_by_hand(family, task, inside, outside):
    model = build(family, task)
    attention = 2 * (4 * T * 32) * 3  # 2 blocks; q·k and weights·v, 2 T h FLOP each; backward costs twice forward
    assert models.flops_per_token(model, T) == 6 * (2 * inside + outside) + attention
    assert models.flops_per_token(model, T, head_share=0.0) == 6 * 2 * inside + attention


def test_flops_of_grouped_queries_are_fewer():
    inside = (32 * 32) * 2 + 2 * (32 * 8) + 3 * 32 * 128  # one key and value head of 8 instead of four
    model = build("llama", "causal", kv_heads=1)
    assert models.flops_per_token(model, T) == 6 * (2 * inside + 32 * V) + 12 * 2 * 32 * T


def test_flops_agree_with_torch_counting():
    from torch.utils.flop_counter import FlopCounterMode

    model, batch = build("gpt2", "causal"), batch_for("causal")
    for block in models.blocks(model):
        block.attn.config._attn_implementation = "eager"  # the counter sees matrix products, not the fused kernel
    with FlopCounterMode(display=False) as counter:
        models.loss_sum(model, batch)[0].backward()
    counted = counter.get_total_flops()
    projection = 6 * 32 * V * B  # the last position predicts nothing and is not projected
    assert counted == models.flops_per_token(model, T) * B * T - projection


def test_the_settings_reach_the_architecture():
    llama = build("llama", "causal", kv_heads=2, positions=64).config
    assert (llama.num_key_value_heads, llama.max_position_embeddings, llama.intermediate_size) == (2, 64, 128)
    gpt2 = build("gpt2", "causal", intermediate=48).config
    assert (gpt2.n_inner, gpt2.n_positions, gpt2.pad_token_id, gpt2.eos_token_id) == (48, T, 0, 2)
    bert = build("bert", "classify").config
    assert (bert.intermediate_size, bert.id2label) == (128, {0: "one", 1: "two", 2: "three"})


def test_a_fresh_model_predicts_nearly_uniformly():
    for family, task in PAIRS:
        loss, count = models.loss_sum(build(family, task), batch_for(task))
        outcomes = V if task in ("causal", "masked") else len(LABELS)
        assert (loss / count).item() == pytest.approx(math.log(outcomes), rel=0.15)


def test_padding_changes_nothing():
    for family in ("gpt2", "bert", "llama"):
        model, batch = build(family, "classify").eval(), batch_for("classify")
        together = models.predictions(model, batch)[0]
        alone = 0
        for i in range(B):
            length = int(batch["attention_mask"][i].sum())
            one = {k: batch[k][i : i + 1, :length] for k in ("input_ids", "attention_mask")}
            alone += models.predictions(model, one | {"labels": batch["labels"][i : i + 1]})[0]
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "task", "model", "labels", "pad", "says"),
    [
        ("llama", "causal", {"hidden": 12, "heads": 4}, [], 0, "even"),
        ("bert", "classify", {}, [], 0, "has 0 labels"),
        ("bert", "tag", {}, ["only"], 0, "has 1 labels"),
        ("gpt2", "classify", {}, LABELS, None, "padding"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(family, task, model, labels, pad, says):
    tokenizer = SimpleNamespace(pad_token_id=pad, bos_token_id=1, eos_token_id=2)
    with pytest.raises(UserError, match=says) as caught:
        models.build(settings_of(family, task, **model), V, labels, tokenizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "task", "names"),
    [
        ("llama", "causal", ["model.embed_tokens.weight"]),
        ("gpt2", "causal", ["transformer.wpe.weight"]),  # wte is the output projection, too
        ("bert", "masked", ["bert.embeddings.position_embeddings.weight"]),
    ],
)
def test_embeddings_with_sparse_gradients(family, task, names):
    model = build(family, task)
    tables = [dict(model.named_parameters())[name] for name in names]
    least = min(len(table) for table in tables)
    assert models.sparse_embeddings(model, 2 * least - 1) == names
    assert models.sparse_embeddings(model, 10**9) == []


@pytest.mark.parametrize(("family", "task"), [("gpt2", "causal"), ("bert", "masked")])
def test_a_lookup_in_a_tied_embedding_has_a_gradient_of_its_own(family, task):
    batch = batch_for(task)
    plain, parted = build(family, task), build(family, task)
    (name, leaf), *others = models.part_lookups(parted, V).items()
    assert not others
    want, got = gradients(plain, batch), gradients(parted, batch)
    rows = set(leaf.grad.abs().sum(1).nonzero().flatten().tolist())
    assert rows
    assert rows <= set(batch["input_ids"].flatten().tolist())
    got[name] = got[name] + leaf.grad
    for key, gradient in want.items():
        torch.testing.assert_close(got[key], gradient, rtol=1e-5, atol=1e-7, msg=key)
    with torch.no_grad():
        dict(parted.named_parameters())[name].zero_()
    assert not leaf.any()  # one memory
    assert models.part_lookups(build("llama", "causal"), V) == {}


def test_a_lookup_that_was_parted_can_be_whole_again():
    batch = batch_for("causal")
    plain, parted = build("gpt2", "causal"), build("gpt2", "causal")
    (leaf,) = models.part_lookups(parted, V).values()
    models.whole_lookups(parted)
    want, got = gradients(plain, batch), gradients(parted, batch)
    assert all(torch.equal(got[name], gradient) for name, gradient in want.items())
    assert leaf.grad is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # by torch of its own parts
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
def test_compiled_blocks_keep_names_and_gradients():
    batch = batch_for("causal")
    plain, compiled = build("gpt2", "causal"), build("gpt2", "causal")
    models.compile_blocks(compiled)
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in compiled.named_parameters()]
    want, got = gradients(plain, batch), gradients(compiled, batch)
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-4, msg=name)
