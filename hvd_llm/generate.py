"""`hvd-llm generate`: go on from a prompt, or fill its [MASK] tokens."""

import argparse
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hvd_llm.errors import UserError
from hvd_llm.runfolder import load_model


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 1,
) -> str:
    """Return the prompt and what the model makes of it; the same seed gives the same text.

    Args:
        prompt: text to continue; for a masked model, text with at least one mask token.
        max_new_tokens: causal only; the text also ends where the model's positions do.
        temperature: 0 takes the likeliest token each time.
        top_k: draw among this many likeliest tokens. 0: among all.

    Raises:
        UserError: the prompt is empty, too long or without a mask, a number is out of range, or the model
            neither continues nor fills text, or has diverged.
    """
    _check(
        ("max-new-tokens", max_new_tokens, 1), ("temperature", temperature, 0), ("top-k", top_k, 0), ("seed", seed, 0)
    )
    causal = model.can_generate()
    if not causal and not hasattr(model, "cls"):
        raise UserError(f"this run trained {type(model).__name__}, which labels text and generates none")
    ids_T = torch.tensor(tokenizer(prompt, add_special_tokens=not causal)["input_ids"], dtype=torch.int64)
    room = model.config.max_position_embeddings - len(ids_T)
    if not len(ids_T) or room < (1 if causal else 0):
        raise UserError(
            f"--prompt has {len(ids_T)} tokens; allowed: 1 to {model.config.max_position_embeddings - causal}"
        )
    model.eval()
    if not model(input_ids=ids_T[None]).logits.isfinite().all():
        raise UserError("this model makes numbers that are not finite: its training diverged")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**63)
        if causal:
            return _continue(model, tokenizer, ids_T, min(max_new_tokens, room), temperature, top_k)
        return _fill(model, tokenizer, ids_T, temperature, top_k)


def _continue(model, tokenizer, ids_T, max_new_tokens: int, temperature: float, top_k: int) -> str:
    sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature else {"do_sample": False}
    ids_1T = ids_T[None]
    out_1T = model.generate(
        ids_1T,
        attention_mask=torch.ones_like(ids_1T),
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id or 0,  # a single sequence has no padding, but generate wants one
        **sampling,
    )
    return tokenizer.decode(out_1T[0], skip_special_tokens=True)


def _fill(model, tokenizer, ids_T, temperature: float, top_k: int) -> str:
    """Fill the masks from left to right, each seeing the ones before."""
    places = (ids_T == tokenizer.mask_token_id).nonzero().flatten().tolist()
    if not places:
        raise UserError(f"--prompt has no {tokenizer.mask_token}: this run trained a masked model, which fills those")
    for place in places:
        logits_V = model(input_ids=ids_T[None]).logits[0, place].float()
        logits_V[tokenizer.all_special_ids] = -torch.inf
        ids_T[place] = _draw(logits_V, temperature, top_k)
    return tokenizer.decode(ids_T, skip_special_tokens=True)


def _draw(logits_V: torch.Tensor, temperature: float, top_k: int) -> torch.Tensor:
    if not temperature:
        return logits_V.argmax()
    best_K, tokens_K = logits_V.topk(min(top_k or len(logits_V), len(logits_V)))
    return tokens_K[torch.multinomial((best_K / temperature).softmax(-1), 1)[0]]


def _check(*limits: tuple[str, float, int]) -> None:
    for name, value, least in limits:
        if not least <= value < float("inf"):
            raise UserError(f"--{name} is {value}; it must be {least} or more")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--prompt", required=True, help="text to continue; masked models fill its mask tokens")
    parser.add_argument("--step", default="latest", help="latest, best or a step's number (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=100, help="length of the text (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: the likeliest token (default: %(default)s)")
    parser.add_argument(
        "--top-k", type=int, default=50, help="likeliest tokens to draw from, 0: all (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same text (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    model, tokenizer, _ = load_model(args.run, args.step)
    print(generate(model, tokenizer, args.prompt, args.max_new_tokens, args.temperature, args.top_k, args.seed))
