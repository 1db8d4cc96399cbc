"""Which class of `transformers` stands for a family and a task."""

import transformers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)

# Everything it would say that a user can act on reaches them as a UserError.
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

CONFIGS = {"gpt2": GPT2Config, "bert": BertConfig, "llama": LlamaConfig}

# family: task: class
CLASSES = {
    "gpt2": {
        "causal": GPT2LMHeadModel,
        "classify": GPT2ForSequenceClassification,
        "tag": GPT2ForTokenClassification,
    },
    "bert": {
        "masked": BertForMaskedLM,
        "classify": BertForSequenceClassification,
        "tag": BertForTokenClassification,
    },
    "llama": {
        "causal": LlamaForCausalLM,
        "classify": LlamaForSequenceClassification,
        "tag": LlamaForTokenClassification,
    },
}


def dropout_settings(family: str, dropout: float) -> dict[str, float]:
    """Every dropout probability that a family's configuration has."""
    names = {
        "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop", "classifier_dropout"),
        "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
        "llama": ("attention_dropout", "classifier_dropout"),
    }
    return dict.fromkeys(names[family], dropout)
