"""A model from the run's settings: fresh, or from a local folder with a head for the task."""

from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hvd_llm.config import Config, Model
from hvd_llm.errors import UserError
from hvd_llm.models.classes import CLASSES, CONFIGS, dropout_settings
from hvd_llm.models.folder import from_pretrained


def build(config: Config, vocabulary: int, labels: list[str], tokenizer) -> PreTrainedModel:
    """Build the model of a run, in fp32 and in training mode, with weights decided by `run.seed` alone.

    Under `with torch.device("meta")` a fresh model takes no memory.

    Args:
        config: the run's settings; `model` and `data.task` decide what is built.
        vocabulary: number of token ids that the data can hold.
        labels: names of the classes for classify and tag; ignored otherwise.
        tokenizer: the data's; of a fresh model, anything with `pad_token_id`, `bos_token_id` and `eos_token_id`.

    Raises:
        UserError: the model cannot do the task, does not fit the data, or its folder is unusable.
    """
    task = config.data.task
    settings = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if task in ("classify", "tag"):
        if len(labels) < 2:
            raise UserError(
                f"data.task is {task!r}, but {config.data.path} has {len(labels)} labels; it needs 2 or more"
            )
        if settings["pad_token_id"] is None:
            raise UserError(f"data.task is {task!r}, but the tokenizer of {config.data.path} has no padding token")
        settings |= {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: number for number, label in enumerate(labels)},
        }
    with _seeded(config.run.seed):
        if config.model.pretrained:
            model = from_pretrained(Path(config.model.pretrained), config, vocabulary, settings, tokenizer)
        else:
            model = _fresh(config, vocabulary, settings)
    # transformers never trains the padding token, which in some tokenizers is the end of text, which must learn.
    model.get_input_embeddings().padding_idx = None
    model.config.architectures = [type(model).__name__]  # what a checkpoint is rebuilt from
    return model.train()


def _fresh(config: Config, vocabulary: int, settings: dict) -> PreTrainedModel:
    model, task = config.model, config.data.task
    if task not in CLASSES[model.family]:
        raise UserError(f"model.family is {model.family!r}, which cannot do data.task {task!r}")
    if model.family == "llama" and (model.hidden // model.heads) % 2:
        raise UserError(
            f"model.hidden / model.heads is {model.hidden // model.heads}: llama's rotary positions need an even number"
        )
    architecture = {
        "vocab_size": vocabulary,
        "hidden_size": model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "max_position_embeddings": model.positions or config.data.sequence_length,
        **_feed_forward(model),
        **dropout_settings(model.family, model.dropout),
        # On CPU as fast as "eager" (from 5 % slower to 17 % faster); without dropout it never stores T x T weights.
        "attn_implementation": "sdpa",
    }
    return CLASSES[model.family][task](CONFIGS[model.family](**architecture, **settings))


def _feed_forward(model: Model) -> dict:
    """What the families' configurations name differently."""
    if model.family == "gpt2":
        # The same function as GPT-2's "gelu_new", in one fused kernel.
        return {"n_inner": model.intermediate or 4 * model.hidden, "activation_function": "gelu_pytorch_tanh"}
    if model.family == "bert":
        return {"intermediate_size": model.intermediate or 4 * model.hidden}
    eight_thirds = -(-8 * model.hidden // 3)
    return {
        "intermediate_size": model.intermediate or -(-eight_thirds // 64) * 64,
        "num_key_value_heads": model.kv_heads or model.heads,
    }


@contextmanager
def _seeded(seed: int):
    """Seed the CPU generator for the body and put back what it was; other devices' are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**63)
        yield
