#!/usr/bin/env python3
"""Scores, gradients and generated tokens of small translation and language models with weights from a formula. Needs torch 2.13 and
transformers 5.23.

    python3 scripts/references/language_models.py > tests/fixtures/language_models.json

The weights follow the formula of image_models.py: parameters and buffers, sorted by name, tied ones once.
"""

import json
import logging
import sys
import zlib

import torch
import transformers
from torch import nn
from torch.nn import functional as F

from image_models import formula

logging.disable(logging.WARNING)

SOURCE = [[5, 9, 4, 12, 7, 3, 1], [8, 6, 11, 1, 0, 0, 0]]
TARGET = [[0, 6, 10, 4, 9], [0, 7, 5, 0, 0]]
LABELS = [[6, 10, 4, 9, 1], [7, 5, 1, -100, -100]]

SMALL = {"vocab_size": 23, "d_model": 16, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
MARIAN = {**SMALL, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
          "decoder_ffn_dim": 20, "activation_function": "silu", "scale_embedding": True, "max_position_embeddings": 32}
T5 = {**SMALL, "d_kv": 6, "d_ff": 24, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
      "relative_attention_max_distance": 12}
GPT2 = {"vocab_size": 23, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4}
LLAMA = {"vocab_size": 23, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 32}

ENCODER_DECODERS = [
    ("marian", {**MARIAN}),
    ("marian", {**MARIAN, "share_encoder_decoder_embeddings": False, "decoder_vocab_size": 19, "scale_embedding": False,
                "activation_function": "relu"}),
    ("t5", {**T5}),
    ("t5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
]
DECODERS = [
    ("gpt2", {**GPT2}),
    ("gpt2", {**GPT2, "tie_word_embeddings": False, "n_inner": 20, "activation_function": "relu"}),
    ("llama", {**LLAMA}),
    ("llama", {**LLAMA, "num_key_value_heads": 4, "head_dim": 6, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
               "rope_theta": 500.0,
               "rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 16}}),
    ("llama", {**LLAMA, "num_key_value_heads": 1, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
]


def tensors(model):
    """Own tensors by name: tied ones once, tables that are computed left out."""
    own = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    own.update({name: tensor for name, tensor in model.named_buffers() if name == "final_logits_bias"})
    return dict(sorted(own.items()))


def fill(model):
    with torch.no_grad():
        for number, (name, tensor) in enumerate(tensors(model).items()):
            values = formula(tensor.numel(), number).view(tensor.shape)
            if tensor.dim() > 1 and name.endswith("weight"):
                values = values * (3 / tensor[0].numel()) ** 0.5
            elif name.endswith("weight"):
                values = 1 + 0.2 * values
            else:
                values = 0.1 * values
            tensor.copy_(values)


def layout(model):
    text = "".join(f"{name} {list(tensor.shape)}\n" for name, tensor in tensors(model).items())
    return zlib.crc32(text.encode())


def gradients(model, loss):
    loss.backward()
    return {name: parameter.grad.double().norm().item() for name, parameter in tensors(model).items() if parameter.requires_grad}


def dropless(config):
    for key in ("dropout", "attention_dropout", "activation_dropout", "dropout_rate", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, key):
            setattr(config, key, 0.0)
    config._attn_implementation = "eager"
    return config


def searches(model, **inputs):
    cases = []
    for settings in [
        {"num_beams": 1},
        {"num_beams": 3},
        {"num_beams": 4, "length_penalty": 2.0, "num_return_sequences": 3},
        {"num_beams": 4, "length_penalty": 0.0},
        {"num_beams": 5, "min_new_tokens": 6, "no_repeat_ngram_size": 2, "num_return_sequences": 2},
        {"num_beams": 1, "min_new_tokens": 8, "no_repeat_ngram_size": 3},
    ]:
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False, return_dict_in_generate=True, output_scores=True, **settings)
        scores = output.sequences_scores.tolist() if settings["num_beams"] > 1 else None
        cases.append({"settings": settings, "sequences": output.sequences.tolist(), "scores": scores})
    return cases


def encoder_decoder(kind, options):
    config = dropless(transformers.AutoConfig.for_model(kind, **options))
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    if options.get("tie_word_embeddings") is False:
        # Files of version 1.1 have an output layer of their own; a new model of transformers 5 has one only when it is given.
        model.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
    fill(model)
    model.train()
    source = torch.tensor(SOURCE)
    mask = (source != 0).long()
    output = model(input_ids=source, attention_mask=mask, decoder_input_ids=torch.tensor(TARGET))
    loss = F.cross_entropy(output.logits.flatten(0, 1), torch.tensor(LABELS).flatten())
    norms = gradients(model, loss)
    model.eval()
    model.generation_config.forced_eos_token_id = None
    return {"model": {"model_type": kind, **options}, "layout": layout(model), "logits": output.logits.flatten().tolist(), "loss": loss.item(),
            "gradient_norms": norms, "searches": searches(model, input_ids=source, attention_mask=mask)}


def decoder(kind, options):
    config = dropless(transformers.AutoConfig.for_model(kind, **json.loads(json.dumps(options)), eos_token_id=1, pad_token_id=0, bos_token_id=2))
    model = transformers.AutoModelForCausalLM.from_config(config)
    fill(model)
    model.train()
    # The second text is filled up on the left.
    tokens = torch.tensor([[5, 9, 4, 12, 7, 3], [0, 0, 8, 6, 11, 2]])
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    output = model(input_ids=tokens, attention_mask=mask, position_ids=positions)
    labels = torch.where(mask == 1, tokens, -100)[:, 1:].clone()
    labels[1, 1] = -100
    loss = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels.flatten())
    norms = gradients(model, loss)
    model.eval()
    greedy = model.generate(input_ids=tokens, attention_mask=mask, max_new_tokens=10, do_sample=False)
    return {"model": {"model_type": kind, **options}, "layout": layout(model), "logits": output.logits[:, 2:].flatten().tolist(), "loss": loss.item(),
            "gradient_norms": norms, "greedy": greedy[:, 6:].tolist()}


class Plain(nn.Module):
    """Embeddings, sines and cosines, nn.Transformer, a linear layer."""

    def __init__(self, norm_first, activation):
        super().__init__()
        self.source_embedding = nn.Embedding(23, 16, padding_idx=0)
        self.target_embedding = nn.Embedding(19, 16, padding_idx=0)
        for table in (self.source_embedding, self.target_embedding):
            nn.init.normal_(table.weight, std=16 ** -0.5)
            with torch.no_grad():
                table.weight[0] = 0
        self.transformer = nn.Transformer(16, 4, 2, 3, 24, 0.0, activation=activation, norm_first=norm_first, batch_first=True)
        self.generator = nn.Linear(16, 19)

    def forward(self, source, target, padding):
        def embed(table, tokens):
            angles = torch.arange(tokens.shape[1]).double()[:, None] * 10000 ** (-torch.arange(0, 16, 2).double() / 16)
            return table(tokens) * 4 + torch.stack([angles.sin(), angles.cos()], 2).flatten(1).float()

        ahead = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        output = self.transformer(embed(self.source_embedding, source), embed(self.target_embedding, target), tgt_mask=ahead,
                                  src_key_padding_mask=padding, memory_key_padding_mask=padding)
        return self.generator(output)


def plain(norm_first, activation):
    torch.manual_seed(3)
    model = Plain(norm_first, activation)
    begin = {name: [tensor.double().sum().item(), tensor.double().square().sum().item()] for name, tensor in sorted(model.state_dict().items())}
    fill(model)
    source = torch.tensor(SOURCE)
    logits = model(source, torch.tensor(TARGET), source == 0)
    loss = F.cross_entropy(logits.flatten(0, 1), torch.tensor(LABELS).flatten(), label_smoothing=0.1)
    return {"norm_first": norm_first, "activation": activation, "begin": begin, "layout": layout(model), "logits": logits.flatten().tolist(),
            "loss": loss.item(), "gradient_norms": gradients(model, loss)}


json.dump(
    {
        "source": SOURCE, "target": TARGET, "labels": LABELS,
        "transformer": [plain(False, "relu"), plain(True, "gelu")],
        "encoder_decoder": [encoder_decoder(*case) for case in ENCODER_DECODERS],
        "decoder": [decoder(*case) for case in DECODERS],
    },
    sys.stdout,
)
print()
