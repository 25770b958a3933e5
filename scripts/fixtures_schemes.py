#!/usr/bin/env python3
"""Makes tests/fixtures/form_*.safetensors: tiny models with the residual form of an initialization scheme, written in
plain torch from the papers' formulas, as an oracle for forward and backward.

Needs torch and safetensors (pip install torch safetensors). The tests themselves need no Python. All is computed in
float64; weights are float32 numbers.

Usage: scripts/fixtures_schemes.py [--out FOLDER]

Each file holds, with V vocab, B batch, T sequence, and one tensor per name for PARAM, what scripts/fixtures.py's files
hold but for the optimizer's steps: metadata "config" (config.json as grove writes it), tokens I64 [B, T+1],
param.PARAM F32, logits F64 [B, T, V], loss F64 [] (mean cross-entropy), grad.PARAM F64.

  fixup     Zhang et al. 2019, arXiv:1901.09321: y = x + m F(x), no norms, a number before each layer and activation
  skipinit  De and Smith 2020, arXiv:2002.10444: y = x + a F(x), no norms, an `a` for each branch
  rezero    Bachlechner et al. 2020, arXiv:2003.04887: the same, an `a` for each block
  t_fixup   Huang et al. 2020 (ICML): y = x + F(x), no norms
  deepnorm  Wang et al. 2022, arXiv:2203.00555: y = LN(alpha x + F(x)), alpha = (2 L)^(1/4)
  subln     Wang et al. 2022, arXiv:2210.06423: y = x + W LN(f(LN(x)))
"""
import argparse
import json
import math
import pathlib

import torch
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYERS, VOCAB, SEQUENCE, HIDDEN, HEAD, INNER, EPS, THETA = 2, 19, 9, 12, 4, 10, 1e-3, 100.0
ALPHA = (2 * LAYERS) ** 0.25
RESIDUAL = {
    "fixup": dict(norm="none", gain="branch", skip=1.0, scalar_biases=True),
    "skipinit": dict(norm="none", gain="branch", skip=1.0, scalar_biases=False),
    "rezero": dict(norm="none", gain="block", skip=1.0, scalar_biases=False),
    "t_fixup": dict(norm="none", gain="none", skip=1.0, scalar_biases=False),
    "deepnorm": dict(norm="post", gain="none", skip=ALPHA, scalar_biases=False),
    "subln": dict(norm="sub", gain="none", skip=1.0, scalar_biases=False),
}
# (scheme, family, heads of keys and values): heads of 4, two or four of them, so that attention is not as wide as the
# stream in Llamas; tied heads in GPT-2, whose last unit is empty where there is no final norm.
FILES = [("fixup", "llama", 2), ("fixup", "gpt2", 3), ("skipinit", "llama", 1), ("rezero", "gpt2", 3),
         ("rezero", "llama", 2), ("t_fixup", "llama", 2), ("deepnorm", "gpt2", 3), ("deepnorm", "llama", 2),
         ("subln", "llama", 2), ("subln", "gpt2", 3)]


def heads(family):
    return 3 if family == "gpt2" else 4


class Model:
    """Parameters by name, made as they are asked for the first time, and the model as a function of them."""

    def __init__(self, scheme, family, kv_heads, seed):
        self.scheme, self.family, self.kv_heads = scheme, family, kv_heads
        self.generator = torch.Generator().manual_seed(seed)
        self.params = {}

    def param(self, name, *shape, center=0.0, spread=0.3):
        if name not in self.params:
            noise = torch.randn(shape, generator=self.generator, dtype=torch.float32)
            self.params[name] = (center + spread * noise).double().requires_grad_()
        return self.params[name]

    def number(self, name, center=0.0):
        return self.param(name, 1, center=center)

    def norm(self, name, x):
        width = x.shape[-1]
        weight = self.param(f"{name}.weight", width, center=1.0, spread=0.2)
        if self.family == "llama":
            return x / torch.sqrt((x ** 2).mean(-1, keepdim=True) + EPS) * weight
        bias = self.param(f"{name}.bias", width)
        centered = x - x.mean(-1, keepdim=True)
        return centered / torch.sqrt((centered ** 2).mean(-1, keepdim=True) + EPS) * weight + bias

    def linear(self, name, x, outputs):
        if self.family == "llama":
            return x @ self.param(f"{name}.weight", outputs, x.shape[-1]).T
        return x @ self.param(f"{name}.weight", x.shape[-1], outputs) + self.param(f"{name}.bias", outputs)

    def rotated(self, x):
        half = HEAD // 2
        angles = torch.arange(x.shape[1]).double()[:, None] * THETA ** (-torch.arange(half).double() / half)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def attend(self, prefix, x, before_last):
        """Multi-head causal attention without its input's norm; `before_last` goes before the output map."""
        batch, length, _ = x.shape
        n, k = heads(self.family), self.kv_heads
        if self.family == "llama":
            q, key, v = (self.linear(f"{prefix}self_attn.{one}_proj", x, count * HEAD).view(batch, length, count, HEAD)
                         for one, count in (("q", n), ("k", k), ("v", k)))
            q, key = self.rotated(q), self.rotated(key)
        else:
            fused = self.linear(f"{prefix}attn.c_attn", x, 3 * HIDDEN).view(batch, length, 3, n, HEAD)
            q, key, v = fused.unbind(2)
        key, v = (one.repeat_interleave(n // k, 2) for one in (key, v))
        scores = torch.einsum("bind,bjnd->bnij", q, key) / math.sqrt(HEAD)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        out = torch.einsum("bnij,bjnd->bind", weights, v).reshape(batch, length, n * HEAD)
        name = "self_attn.o_proj" if self.family == "llama" else "attn.c_proj"
        return self.linear(f"{prefix}{name}", before_last(out), HIDDEN)

    def feed(self, prefix, x, before_activation, before_last):
        if self.family == "llama":
            both = torch.cat([self.linear(f"{prefix}mlp.{one}_proj", x, INNER) for one in ("gate", "up")], -1)
            gate, up = before_activation(both).chunk(2, -1)
            return self.linear(f"{prefix}mlp.down_proj", before_last(gate * torch.sigmoid(gate) * up), HIDDEN)
        hidden = before_activation(self.linear(f"{prefix}mlp.c_fc", x, INNER))
        hidden = torch.nn.functional.gelu(hidden, approximate="tanh")
        return self.linear(f"{prefix}mlp.c_proj", before_last(hidden), HIDDEN)

    def block(self, p, x):
        """One block of the scheme, as its paper has it."""
        def same(x):
            return x

        llama = self.family == "llama"
        first, second = ("input_layernorm", "post_attention_layernorm") if llama else ("ln_1", "ln_2")
        attn = "self_attn" if llama else "attn"
        if self.scheme == "fixup":
            def plus(name):
                return lambda x: x + self.number(f"{p}residual.{name}_bias")
            attended = self.attend(p, plus("qkv")(x), plus("output"))
            x = x + self.number(f"{p}residual.attention_gain", 1.0) * attended
            fed = self.feed(p, plus("up")(x), plus("activation"), plus("down"))
            return x + self.number(f"{p}residual.mlp_gain", 1.0) * fed
        if self.scheme == "skipinit":
            x = x + self.number(f"{p}residual.attention_gain") * self.attend(p, x, same)
            return x + self.number(f"{p}residual.mlp_gain") * self.feed(p, x, same, same)
        if self.scheme == "rezero":
            x = x + self.number(f"{p}residual.gain") * self.attend(p, x, same)
            return x + self.number(f"{p}residual.gain") * self.feed(p, x, same, same)
        if self.scheme == "t_fixup":
            x = x + self.attend(p, x, same)
            return x + self.feed(p, x, same, same)
        if self.scheme == "deepnorm":
            behind = ("post_attention_layernorm", "post_feedforward_layernorm") if llama else ("ln_1", "ln_2")
            x = self.norm(f"{p}{behind[0]}", ALPHA * x + self.attend(p, x, same))
            return self.norm(f"{p}{behind[1]}", ALPHA * x + self.feed(p, x, same, same))
        x = x + self.attend(p, self.norm(f"{p}{first}", x), lambda o: self.norm(f"{p}{attn}.attn_sub_norm", o))
        fed = self.norm(f"{p}{second}", x)
        return x + self.feed(p, fed, same, lambda o: self.norm(f"{p}mlp.ffn_sub_norm", o))

    def logits(self, tokens):
        llama = self.family == "llama"
        table = self.param("model.embed_tokens.weight" if llama else "transformer.wte.weight", VOCAB, HIDDEN, spread=0.8)
        x = table[tokens]
        if not llama:
            x = x + self.param("transformer.wpe.weight", SEQUENCE, HIDDEN)[:tokens.shape[1]]
        for layer in range(LAYERS):
            x = self.block(f"model.layers.{layer}." if llama else f"transformer.h.{layer}.", x)
        if self.scheme == "subln":
            x = self.norm("model.norm" if llama else "transformer.ln_f", x)
        if self.scheme == "fixup":
            x = x + self.number("model.residual.head_bias" if llama else "transformer.residual.head_bias")
        return x @ (self.param("lm_head.weight", VOCAB, HIDDEN) if llama else table).T

    def config(self):
        shared = dict(model_type="grove", grove_family=self.family, residual=RESIDUAL[self.scheme], vocab_size=VOCAB,
                      initializer_range=0.02)
        if self.family == "llama":
            return dict(shared, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
                        num_attention_heads=heads("llama"), num_key_value_heads=self.kv_heads, head_dim=HEAD,
                        max_position_embeddings=SEQUENCE, rms_norm_eps=EPS, rope_theta=THETA,
                        tie_word_embeddings=False)
        return dict(shared, n_positions=SEQUENCE, n_embd=HIDDEN, n_layer=LAYERS, n_head=heads("gpt2"), n_inner=INNER,
                    layer_norm_epsilon=EPS)


def fixture(scheme, family, kv_heads, seed):
    model = Model(scheme, family, kv_heads, seed)
    tokens = torch.randint(VOCAB, (2, SEQUENCE + 1), generator=torch.Generator().manual_seed(seed))
    logits = model.logits(tokens[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    tensors = dict(tokens=tokens, logits=logits.detach().contiguous(), loss=loss.detach())
    for name, param in model.params.items():
        tensors[f"param.{name}"] = param.detach().float().contiguous()
        tensors[f"grad.{name}"] = param.grad.contiguous()
    return tensors, json.dumps(model.config(), sort_keys=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests" / "fixtures")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    for seed, (scheme, family, kv_heads) in enumerate(FILES):
        tensors, config = fixture(scheme, family, kv_heads, seed)
        path = out / f"form_{scheme}_{family}.safetensors"
        save_file(tensors, path, metadata={"config": config})
        print(f"{path}: {path.stat().st_size} bytes, loss {tensors['loss'].item():.4f}")


if __name__ == "__main__":
    main()
