#!/usr/bin/env python3
"""Makes tests/fixtures/exchange: tiny model folders as transformers writes them, and a GGUF file, for the tests of import
and export.

Needs torch, transformers, safetensors, tokenizers and gguf (pip install them). The tests themselves need no Python.
Logits are computed in float64 from float32 weights.

Usage: scripts/fixtures_exchange.py [--out FOLDER]

  llama/         save_pretrained of a Llama (GQA, untied head), in shards with an index
  gpt2/          a GPT-2 saved without its head, so without the prefix "transformer.", with the buffers that older files have
  llama.gguf     another Llama (tied head): tensors in F32, F16, BF16, Q4_0, Q4_1 and Q8_0, q and k permuted as llama.cpp's
                 converter does, with a byte-level tokenizer
  expected.safetensors
                 tokens I64 [2, 16]; for each of llama, gpt2, gguf: NAME.logits F64 [2, 16, V], NAME.greedy I64 [24], the
                 first 8 tokens of row 0 and the 16 most likely that follow; gguf.q_proj F32, as dequantized by gguf;
                 gguf.text_ids I64, what the tokenizers library makes of metadata "text"
"""
import argparse
import json
import pathlib

import gguf
import numpy
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

ROOT = pathlib.Path(__file__).resolve().parent.parent
VOCAB = 288
POSITIONS = 32
TEXT = "In 1984, it's 3 bytes: \u00e9t\u00e9.\n<|end|> then the end"
LLAMA = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=POSITIONS, rms_norm_eps=1e-5, attention_bias=False,
             mlp_bias=False, rope_parameters=dict(rope_type="default", rope_theta=500.0))
# Every type that is read, each on some matrices.
GGUF_TYPES = [Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q8_0]


def draw(model, seed):
    """Weights at which nothing is trivial: norms are not 1, biases not 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm = parameter.dim() == 1 and name.endswith("weight")
        with torch.no_grad():
            parameter.copy_(1 + 0.2 * noise if is_norm else 0.25 * noise)
    return model.eval()


def answers(name, model, tokens):
    """What the model makes of the tokens, in float64."""
    model = model.double()
    with torch.no_grad():
        logits = model(input_ids=tokens).logits
        greedy = tokens[:1, :8]
        for _ in range(16):
            greedy = torch.cat([greedy, model(input_ids=greedy).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return {f"{name}.logits": logits, f"{name}.greedy": greedy[0].clone()}


def permuted(weights, heads):
    """llama.cpp's permute of q and k: rows of a head from [half, pair] to [pair, half]."""
    rows, width = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def tokenizer_parts():
    """A byte-level vocabulary of VOCAB tokens with 31 merges and one control token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = ["<|end|>"] + alphabet, []
    for a, b in ["Ġt", "th", "he", "Ġe", "en", "nd", "in", "by", "te", "es", "it", "'s", "an", "er", "re", "on", "at",
                 "or", "st", "al", "is", "ar", "ou", "ed", "ng", "ti", "Ġa", "Ġs", "Ġo", "Ġw", "19"]:
        merges.append((a, b))
        tokens.append(a + b)
    assert len(tokens) == VOCAB, len(tokens)
    return tokens, merges


def write_gguf(path, model):
    """Writes the model and its tokenizer; returns the weights as they come back."""
    config, back = model.config, {}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(500.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens, merges = tokenizer_parts()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (VOCAB - 1))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(0)
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    parts = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
             "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    for layer in range(config.num_hidden_layers):
        for ours, theirs in parts.items():
            names[f"model.layers.{layer}.{ours}.weight"] = f"blk.{layer}.{theirs}.weight"
    matrices = 0
    for name, parameter in model.named_parameters():
        values, heads = parameter.detach().numpy(), None
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = permuted(values, heads)
        kind = Type.F32
        if values.ndim == 2:
            kind = GGUF_TYPES[matrices % len(GGUF_TYPES)]
            matrices += 1
        stored = gguf.quants.quantize(numpy.ascontiguousarray(values), kind)
        if kind == Type.F16:
            writer.add_tensor(names[name], stored)
        else:
            writer.add_tensor(names[name], stored, raw_dtype=kind)
        values = gguf.quants.dequantize(stored, kind).reshape(values.shape)
        if heads:
            values = values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        back[name] = torch.tensor(numpy.ascontiguousarray(values), dtype=torch.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return back


def text_ids():
    """TEXT by the tokenizers library, with SmolLM2's split."""
    tokens, merges = tokenizer_parts()
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer.encode(TEXT).ids


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/fixtures/exchange")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    tokens = torch.randint(0, VOCAB, (2, 16), generator=torch.Generator().manual_seed(5))
    expected = {"tokens": tokens}

    llama = draw(LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=False)), 1)
    llama.save_pretrained(out / "llama", max_shard_size="60KB")
    expected |= answers("llama", llama, tokens)

    shape = dict(vocab_size=VOCAB, n_positions=POSITIONS, n_embd=24, n_head=3, n_layer=2, n_inner=40)
    gpt2 = draw(GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0,
                                           eos_token_id=0)), 2)
    gpt2.transformer.save_pretrained(out / "gpt2")
    path = out / "gpt2/model.safetensors"
    stored = load_file(path)
    for layer in range(2):
        stored[f"h.{layer}.attn.bias"] = torch.ones(1, 1, POSITIONS, POSITIONS, dtype=torch.bool).tril()
        stored[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(stored, path, metadata={"format": "pt"})
    expected |= answers("gpt2", gpt2, tokens)

    small = draw(LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True)), 3)
    back = write_gguf(out / "llama.gguf", small)
    small.load_state_dict(back | {"lm_head.weight": back["model.embed_tokens.weight"]})
    expected |= answers("gguf", small, tokens)
    expected["gguf.q_proj"] = back["model.layers.0.self_attn.q_proj.weight"]
    expected["gguf.text_ids"] = torch.tensor(text_ids())
    save_file(expected, out / "expected.safetensors", metadata={"text": TEXT})
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        print(file.relative_to(out), file.stat().st_size)


if __name__ == "__main__":
    main()
