#!/usr/bin/env python3
"""Outputs, gradients, attention and initial values of transformers' encoders with weights from a formula. Needs torch==2.13.0 and
transformers==5.23.0.

    python3 scripts/references/encoder_models.py > tests/fixtures/encoder_models.json

Both sides fill a network by the same integer arithmetic as in image_models.py: its parameters, sorted by name, get values that depend on the
position of the tensor in that order and on the position in the tensor. Tied weights count once.
"""

import json
import zlib

import torch
import transformers
from transformers import AutoConfig

from image_models import formula

LABELS = 3
BATCH, LENGTH, VOCABULARY = 3, 9, 50

BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
}
CONFIGS = {
    "bert": {"model_type": "bert", **BERT},
    "bert-other": {"model_type": "bert", **BERT, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "type_vocab_size": 3},
    "roberta": {"model_type": "roberta", **BERT, "pad_token_id": 1, "type_vocab_size": 1, "max_position_embeddings": 14},
    "electra": {"model_type": "electra", **BERT, "embedding_size": 8},
    "electra-square": {"model_type": "electra", **BERT, "embedding_size": 16},
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": VOCABULARY,
        "dim": 16,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 24,
        "max_position_embeddings": 12,
    },
    "distilbert-sinusoidal": {
        "model_type": "distilbert",
        "vocab_size": VOCABULARY,
        "dim": 16,
        "n_layers": 1,
        "n_heads": 2,
        "hidden_dim": 24,
        "max_position_embeddings": 12,
        "sinusoidal_pos_embds": True,
    },
}
CLASSES = {"bert": "Bert", "roberta": "Roberta", "electra": "Electra", "distilbert": "DistilBert"}
HEADS = {
    "none": "Model",
    "masked_lm": "ForMaskedLM",
    "sequence": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "answers": "ForQuestionAnswering",
}

# Text pairs of 9, 6 and 2 tokens.
LENGTHS = [9, 6, 2]


def fill(model):
    with torch.no_grad():
        for number, (name, tensor) in enumerate(sorted(model.named_parameters())):
            values = formula(tensor.numel(), number).view(tensor.shape)
            if tensor.dim() > 1 and name.endswith("weight"):
                values = values * (3 / tensor[0].numel()) ** 0.5
            elif name.endswith("weight"):
                values = 1 + 0.2 * values
            else:
                values = 0.1 * values
            tensor.copy_(values)


def inputs(config):
    ids, segments, mask = [], [], []
    for row, length in enumerate(LENGTHS):
        there = [2 + (row * 11 + position * 7) % (VOCABULARY - 2) for position in range(length)]
        ids.append(there + [config.pad_token_id] * (LENGTH - length))
        segments.append([int(2 * position >= length) for position in range(length)] + [0] * (LENGTH - length))
        mask.append([1] * length + [0] * (LENGTH - length))
    given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if getattr(config, "type_vocab_size", 1) > 1:
        given["token_type_ids"] = torch.tensor(segments)
    return given


def make(settings, head, **options):
    settings = {"num_labels": 2 if head == "answers" else LABELS, **settings}
    config = AutoConfig.for_model(**settings)
    config._attn_implementation = options.pop("attention", "sdpa")
    return getattr(transformers, CLASSES[settings["model_type"]] + HEADS[head])(config)


def numbers(tensor):
    """All numbers, with the digits that float32 has."""
    return [float(f"{value:.9g}") for value in tensor.flatten().tolist()]


def scores_of(outputs, head):
    if head == "answers":
        return torch.stack([outputs.start_logits, outputs.end_logits], -1)
    return outputs.last_hidden_state if head == "none" else outputs.logits


def case(settings, head):
    model = make(settings, head)
    fill(model)
    model.eval()
    given = inputs(model.config)
    outputs = model(**given)
    scores = scores_of(outputs, head)
    # Only what is no padding counts, as in training.
    weights = formula(scores.numel(), 2000).view(scores.shape)
    if head != "sequence":
        weights = weights * given["attention_mask"][..., None]
    loss = (scores * weights).sum()
    pooled = getattr(outputs, "pooler_output", None)
    if pooled is not None:
        loss = loss + (pooled * formula(pooled.numel(), 2001).view(pooled.shape)).sum()
    loss.backward()
    gradients = {name: None if tensor.grad is None else tensor.grad.double().norm().item() for name, tensor in model.named_parameters()}
    torch.manual_seed(3)
    begun = dict(make(settings, head).named_parameters())
    checksums = {name: zlib.crc32(tensor.detach().numpy().astype("<f4").tobytes()) for name, tensor in begun.items()}
    return {
        "names": sorted(gradients),
        "scores": numbers(scores),
        "pooled": None if pooled is None else numbers(pooled),
        "gradient_norms": [gradients[name] for name in sorted(gradients)],
        "beginning": [checksums[name] for name in sorted(checksums)],
    }


def attention(settings):
    model = make(settings, "none", attention="eager")
    fill(model)
    with torch.inference_mode():
        outputs = model.eval()(**inputs(model.config), output_attentions=True)
    return [numbers(weights) for weights in outputs.attentions]


def of_base_size():
    """bert-base's shape on "Hello, my dog is cute": hidden states of the first columns, and the pooled text."""
    model = make({"model_type": "bert"}, "none")
    fill(model)
    ids = [101, 7592, 1010, 2026, 3899, 2003, 10140, 102]
    with torch.inference_mode():
        outputs = model.eval()(torch.tensor([ids]))
    return {
        "input_ids": ids,
        "columns": 8,
        "hidden": numbers(outputs.last_hidden_state[0, :, :8]),
        "pooled": numbers(outputs.pooler_output[0, :8]),
    }


def main():
    torch.set_num_threads(2)
    cases = {}
    for name, settings in CONFIGS.items():
        model = make(settings, "none")
        given = inputs(model.config)
        cases[name] = {
            "config": settings,
            "inputs": {key: value.tolist() for key, value in given.items()},
            "heads": {head: case(settings, head) for head in HEADS},
            "attention": attention(settings),
        }
    versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    print(json.dumps({**versions, "labels": LABELS, "models": cases, "bert_base": of_base_size()}))


if __name__ == "__main__":
    main()
