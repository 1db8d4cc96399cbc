"""Models from a local folder with config.json and safetensors. Nothing in the folder is ever executed."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hvd_llm.config import Config
from hvd_llm.errors import UserError, first_line
from hvd_llm.models.classes import CLASSES, CONFIGS, dropout_settings

log = logging.getLogger(__name__)


def from_pretrained(
    folder: Path, config: Config, vocabulary: int, settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Load weights that fit the run's task; what the folder lacks (the task's head) gets fresh ones.

    Logs once (INFO) which weights are fresh. They are drawn from the global CPU generator.

    Args:
        settings: what to overwrite in the folder's configuration (special tokens, labels).
        tokenizer: the data's.

    Raises:
        UserError: the folder is missing, broken, not safetensors, or does not fit the data or the task.
    """
    where, task = f"model.pretrained is {str(folder)!r}", config.data.task
    if not folder.is_dir():
        raise UserError(f"{where}: there is no such folder")
    theirs = _read_config(folder)
    if task not in CLASSES[theirs.model_type]:
        raise UserError(f"{where}, a {theirs.model_type} model, which cannot do data.task {task!r}")
    if vocabulary > theirs.vocab_size:
        raise UserError(
            f"{where} with a vocabulary of {theirs.vocab_size}, but {config.data.path} has {vocabulary}: "
            "prepare the data with this model's own tokenizer"
        )
    if other := other_token(_tokenizer(folder), tokenizer):
        raise UserError(
            f"{where}, whose tokenizer is not that of {config.data.path} ({other}): "
            "prepare the data with this model's own tokenizer (hvd-llm prepare --tokenizer)"
        )
    if config.data.sequence_length > theirs.max_position_embeddings:
        raise UserError(
            f"data.sequence_length is {config.data.sequence_length}, longer than the "
            f"{theirs.max_position_embeddings} positions of {folder}"
        )
    for name, value in (settings | dropout_settings(theirs.model_type, config.model.dropout)).items():
        setattr(theirs, name, value)
    model, report = _load(CLASSES[theirs.model_type][task], theirs, folder)
    fresh = sorted(set(report["missing_keys"]) | {key for key, *_ in report["mismatched_keys"]})
    body = [name for name in fresh if name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name]
    if body:
        raise UserError(f"{where}, whose safetensors lack {len(body)} weights or have other shapes, first {body[0]}")
    if fresh:
        log.info("fresh weights, not from %s: %s", folder, ", ".join(fresh))
    return model


def from_checkpoint(folder: Path) -> PreTrainedModel:
    """Rebuild a model, in evaluation mode, from config.json (with its `architectures`) and model.safetensors.

    Raises:
        UserError: a file is missing or broken, or its weights are not exactly those of the architecture.
    """
    config = _read_config(folder)
    classes = {cls.__name__: cls for cls in CLASSES[config.model_type].values()}
    names = config.architectures or ["none"]
    if names[0] not in classes:
        raise UserError(f"{folder / 'config.json'} names the architecture {names[0]!r}; allowed: {', '.join(classes)}")
    # Initial weights are overwritten; drawing them must not disturb anybody's random numbers.
    with torch.random.fork_rng(devices=[]):
        model, report = _load(classes[names[0]], config, folder)
    wrong = sorted(
        {*report["missing_keys"], *report["unexpected_keys"], *(key for key, *_ in report["mismatched_keys"])}
    )
    if wrong:
        raise UserError(f"the weights in {folder} do not match its config.json: {len(wrong)} differ, first {wrong[0]}")
    return model


def other_token(model: PreTrainedTokenizerBase | None, data: PreTrainedTokenizerBase) -> str:
    """A token of the model's that is another number in the data, in words; "" if there is none.

    The data's may have tokens more. Without a tokenizer beside the model there is nothing to compare.
    """
    if model is None:
        return ""
    numbers = data.get_vocab()
    for token, number in sorted(model.get_vocab().items(), key=lambda item: item[1]):
        if numbers.get(token) != number:
            return f"token {number} is {token!r} there, {data.convert_ids_to_tokens(number)!r} here"
    return ""


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside a model, if one does."""
    files = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")
    places = (folder, folder / "tokenizer")  # the second in a checkpoint of ours
    place = next((place for place in places if any((place / name).is_file() for name in files)), None)
    if place is None:
        log.info("%s has no tokenizer: its token ids are taken to be the data's", folder)
        return None
    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a broken file makes transformers or tokenizers raise
        raise UserError(f"cannot load the tokenizer in {place}: {first_line(error)}") from None


def _read_config(folder: Path) -> PreTrainedConfig:
    """Read config.json as data: hooks to code, kernels and quantizers are dropped or refused."""
    path = folder / "config.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    kind = tree.get("model_type") if isinstance(tree, dict) else None
    if not isinstance(kind, str) or kind not in CONFIGS:
        raise UserError(f"{path} has the model_type {kind!r}; allowed: {', '.join(CONFIGS)}")
    if tree.get("quantization_config"):
        raise UserError(f"{path} describes a quantised model, which cannot be trained; give the original weights")
    plain = {key: value for key, value in tree.items() if "attn_implementation" not in key and key != "auto_map"}
    try:
        config = CONFIGS[kind].from_dict(plain)
    except Exception as error:  # whatever a malformed value makes transformers raise
        raise UserError(f"cannot use {path}: {first_line(error)}") from None
    # Decoder variants of BERT and GPT-2 with cross-attention hold weights that our tasks never use.
    config.is_decoder = config.add_cross_attention = False
    return config


def _load(cls: type[PreTrainedModel], config: PreTrainedConfig, folder: Path) -> tuple[PreTrainedModel, dict]:
    """Load safetensors into `cls`, in fp32, and report missing, unexpected and mismatched names."""
    if not any((folder / f"model.safetensors{ending}").is_file() for ending in ("", ".index.json")):
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        pickled = f" (it has {pickles[0]}, a pickle, which could run code: convert it first)" if pickles else ""
        raise UserError(f"there is no model.safetensors in {folder}{pickled}")
    try:
        return cls.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported, and judged by the caller
            output_loading_info=True,
            disable_mmap=True,  # else the weights would be pages of a file that others may rewrite
            dtype=torch.float32,
            attn_implementation="sdpa",
        )
    except Exception as error:  # whatever a broken file makes transformers or safetensors raise
        raise UserError(f"cannot load the model in {folder}: {first_line(error)}") from None
