#!/usr/bin/env python3
"""Makes tests/fixtures/*.safetensors: tiny models as Hugging Face transformers computes them, for the parity tests.

Needs torch, transformers and safetensors (pip install torch transformers safetensors). The tests themselves need no
Python. All is computed in float64 on one thread; weights are float32 numbers, so a float32 test starts from the same
point and is compared with the float64 values.

Usage: scripts/fixtures.py [--out FOLDER]

Each file holds, with V vocab, B batch, T sequence, S = 10 optimizer steps, and one tensor per name for PARAM:

  metadata "config"    config.json of the model, as text
  tokens               I64 [B, T+1]     inputs are tokens[:, :-1], targets tokens[:, 1:]
  param.PARAM          F32              Hugging Face names; a tied head has none
  logits               F64 [B, T, V]
  loss                 F64 []           mean cross-entropy over all B x T targets
  grad.PARAM           F64              of that loss
  step_tokens          I64 [S, B, T+1]  a fresh batch for each step
  step_losses          F64 [S]          before the step's update
  step_grad_norms      F64 [S]          over all parameters, before clipping
  after.PARAM          F64              after S steps, which start again from param.PARAM

A step: gradients scaled by min(1, 1 / (norm + 1e-6)), then AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with
lr 1e-3, betas 0.9 and 0.95, eps 1e-8, and weight decay 0.1 on tensors of two or more dimensions, else none.
"""
import argparse
import copy
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama

NUM_STEPS = 10
# Where a gradient cancels to nearly nothing, Adam divides rounding noise by itself. A seed is taken only if torch's own
# float32 run ends this near its float64 run (norm of the difference over norm, every parameter), so that the tests'
# tolerance of 1e-5 measures us and not the fixture.
FLOAT32_NEAR = 3e-7
ROOT = pathlib.Path(__file__).resolve().parent.parent


class Float64Torch:
    """torch as transformers' model files see it here: norms, softmax and rotary angles that they compute in float32
    whatever the model's type is are computed in float64, or the reference would be no better than what it checks."""

    float = float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def llama(**keys):
    """A Llama in eager attention; the keys that differ from file to file are given by the caller."""
    shared = dict(num_hidden_layers=2, hidden_act="silu", attention_bias=False, mlp_bias=False, use_cache=False)
    config = LlamaConfig(**shared, **keys)
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config)


def gpt2(**keys):
    """A GPT-2 in eager attention, without dropout."""
    config = GPT2Config(**keys, n_layer=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                        use_cache=False, bos_token_id=0, eos_token_id=0)
    config._attn_implementation = "eager"
    return GPT2LMHeadModel(config)


# Odd sizes on purpose: a swapped axis, a wrong base or a forgotten epsilon must show.
MODELS = {
    "llama_mha_untied": (12, lambda: llama(
        vocab_size=61, hidden_size=32, intermediate_size=24, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=12, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0))),
    "llama_gqa_tied": (16, lambda: llama(
        vocab_size=67, hidden_size=32, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=16, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=500.0))),
    "llama_mqa_untied": (12, lambda: llama(
        vocab_size=61, hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=12, rms_norm_eps=1e-2, tie_word_embeddings=False,
        rope_parameters=dict(rope_type="default", rope_theta=100.0))),
    "gpt2_tied": (14, lambda: gpt2(
        vocab_size=67, n_positions=16, n_embd=24, n_head=3, n_inner=48, activation_function="gelu_new",
        layer_norm_epsilon=1e-4, tie_word_embeddings=True)),
}


def draw_weights(model, generator):
    """Weights at which nothing is trivial: norms are not 1, biases not 0, and attention is far from uniform."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        is_norm = parameter.dim() == 1 and name.endswith("weight")
        with torch.no_grad():
            parameter.copy_(1 + 0.2 * noise if is_norm else 0.25 * noise)


def config_text(model):
    """config.json; rope_theta also where files written before transformers 5 have it."""
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    config.pop("transformers_version", None)
    if "rope_parameters" in config:
        config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    return json.dumps(config, indent=2, sort_keys=True)


def loss_of(model, tokens):
    """(logits [B, T, V], mean cross-entropy) of tokens [B, T+1]."""
    logits = model(input_ids=tokens[:, :-1]).logits
    return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def named(prefix, model, read):
    return {f"{prefix}.{name}": read(p).detach().clone() for name, p in model.named_parameters()}


def train(model, step_tokens):
    """Runs the optimizer steps in place; returns (losses [S], gradient norms [S])."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [dict(params=decayed, weight_decay=0.1), dict(params=plain, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    losses, norms = [], []
    for tokens in step_tokens:
        optimizer.zero_grad()
        _, loss = loss_of(model, tokens)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        losses.append(loss.detach())
        optimizer.step()
    return torch.stack(losses), torch.stack(norms).double()


def fixture(build, sequence, seed):
    """All tensors of one file, and how far float32 is from them: logits, and weights after the steps."""
    generator = torch.Generator().manual_seed(seed)
    model = build().eval()
    draw_weights(model, generator)
    vocab = model.config.vocab_size
    tokens = torch.randint(vocab, (2, sequence + 1), generator=generator)
    step_tokens = torch.randint(vocab, (NUM_STEPS, 2, sequence + 1), generator=generator)
    tensors = dict(tokens=tokens, step_tokens=step_tokens, **named("param", model, lambda p: p))
    logits32, _ = loss_of(model, tokens)
    float32 = copy.deepcopy(model)
    train(float32, step_tokens)
    modeling_llama.torch = modeling_gpt2.torch = Float64Torch()
    model = model.double()
    # Inverse frequencies are computed anew: cast, they would keep float32's rounding.
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            head_dim = model.config.hidden_size // model.config.num_attention_heads
            exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
            module.inv_freq = module.original_inv_freq = model.config.rope_parameters["rope_theta"] ** -exponents
    logits, loss = loss_of(model, tokens)
    loss.backward()
    tensors |= dict(logits=logits.detach(), loss=loss.detach(), **named("grad", model, lambda p: p.grad))
    tensors["step_losses"], tensors["step_grad_norms"] = train(model, step_tokens)
    tensors |= named("after", model, lambda p: p)
    modeling_llama.torch = modeling_gpt2.torch = torch
    worst = max(relative(p, tensors[f"after.{name}"]) for name, p in float32.named_parameters() if "c_attn.bias" not in name)
    errors = ((logits32 - logits).abs().max().item(), worst)
    return {k: v.contiguous() for k, v in tensors.items()}, config_text(model), errors


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def well_conditioned(build, sequence, first_seed):
    """The fixture of the first seed whose float32 run is near; seeds of different files never meet."""
    for seed in range(first_seed, 10**6, len(MODELS)):
        tensors, config, errors = fixture(build, sequence, seed)
        if errors[1] < FLOAT32_NEAR:
            return tensors, config, errors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests" / "fixtures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for seed, (name, (sequence, build)) in enumerate(MODELS.items(), start=1):
        tensors, config, errors = well_conditioned(build, sequence, seed)
        path = out / f"{name}.safetensors"
        # One metadata key only: safetensors writes several in no fixed order, and the file should not change.
        save_file(tensors, path, metadata={"config": config})
        path.chmod(0o644)
        losses = tensors["step_losses"]
        norms = tensors["step_grad_norms"]
        print(f"{path.name}: {path.stat().st_size} bytes, loss {tensors['loss']:.4f}, steps {losses[0]:.4f} to "
              f"{losses[-1]:.4f}, norms {norms.min():.2f} to {norms.max():.2f}, "
              f"float32 logits differ by {errors[0]:.1e}, weights after the steps by {errors[1]:.1e}")


if __name__ == "__main__":
    main()
