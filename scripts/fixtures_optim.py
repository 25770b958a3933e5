"""Fixtures of the optimizer room: what independent implementations make of the same gradients.

Usage:   python scripts/fixtures_optim.py [OUTPUT_FOLDER]
Example: python scripts/fixtures_optim.py optim/fixtures
Needs:   torch, numpy, safetensors, transformers, lion-pytorch, optax (with jax). Tests only read the
         result, optim/fixtures/parity.safetensors; run this again when a rule is added.

Two parameters (a matrix that decays and a bias that does not) take 50 steps with random gradients,
global clipping to norm 1 (torch.nn.utils.clip_grad_norm_), warm-up and cosine (torch schedulers).
Oracles: torch.optim.AdamW; lion-pytorch, which must agree with optax.lion in fp64.
"""

import pathlib
import sys

import jax
import numpy as np
import optax
import torch
from lion_pytorch import Lion
from safetensors.numpy import save_file
from torch.optim.lr_scheduler import CosineAnnealingLR, ConstantLR, LinearLR, SequentialLR
from transformers import get_wsd_schedule

jax.config.update("jax_enable_x64", True)

STEPS, WARMUP, FINAL_RATIO = 50, 5, 0.1
SHAPES = {"matrix": (17, 7), "bias": (13,)}
RULES = {  # peak lr, betas, weight decay
    "adamw": (0.01, (0.9, 0.95), 0.1),
    "lion": (0.003, (0.95, 0.98), 1.0),
}


def scheduled(optimizer, name, peak, total=STEPS, warmup=WARMUP):
    """A torch scheduler with Grove's warm-up (step + 1) / w and the named decay."""
    rest = total - warmup
    if name == "cosine":
        after = CosineAnnealingLR(optimizer, T_max=rest, eta_min=FINAL_RATIO * peak)
    elif name == "linear":
        after = LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=rest)
    else:
        after = ConstantLR(optimizer, factor=1.0, total_iters=0)
    first = LinearLR(optimizer, start_factor=1.0 / warmup, total_iters=warmup - 1)
    return SequentialLR(optimizer, [first, after], milestones=[warmup])


def learning_rates(name, peak=1.0, total=STEPS, warmup=WARMUP):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    if name == "wsd":  # transformers has the 1 - sqrt cooldown; its warm-up starts at zero
        schedule = get_wsd_schedule(
            optimizer, num_warmup_steps=0, num_decay_steps=total // 5,
            num_stable_steps=total - total // 5, min_lr_ratio=FINAL_RATIO, decay_type="1-sqrt")
    else:
        schedule = scheduled(optimizer, name, peak, total, warmup)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return np.array(rates, dtype=np.float64)


def run_torch(rule, dtype, start, grads):
    peak, betas, weight_decay = RULES[rule]
    params = {k: torch.tensor(v, dtype=dtype, requires_grad=True) for k, v in start.items()}
    groups = [{"params": [params["matrix"]], "weight_decay": weight_decay},
              {"params": [params["bias"]], "weight_decay": 0.0}]
    if rule == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=peak, betas=betas, eps=1e-8, foreach=False)
    else:
        optimizer = Lion(groups, lr=peak, betas=betas)
    rates = learning_rates("cosine", peak)
    out = {}
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = float(rates[step])
        for name, param in params.items():
            param.grad = torch.tensor(grads[name][step], dtype=dtype)
        norm = torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        optimizer.step()
        if step in (0, 9, STEPS - 1):
            for name, param in params.items():
                out[f"{name}.step{step + 1}"] = param.detach().numpy().copy()
        if step == 0:
            assert norm > 1.0, "the first gradient must be clipped"
    for name, param in params.items():
        for key, value in optimizer.state[param].items():
            if key in ("exp_avg", "exp_avg_sq"):
                out[f"{name}.{key}"] = value.numpy().copy()
    return out


def run_optax_lion(start, grads):
    peak, (b1, b2), weight_decay = RULES["lion"]
    rates = learning_rates("cosine", peak)
    out = {}
    total = np.sqrt(sum((g ** 2).sum(axis=tuple(range(1, g.ndim))) for g in grads.values()))
    for name in SHAPES:
        rule = optax.lion(lambda step: jax.numpy.asarray(rates)[step], b1=b1, b2=b2,
                          weight_decay=weight_decay if name == "matrix" else 0.0)
        param = jax.numpy.asarray(start[name])
        state = rule.init(param)
        for step in range(STEPS):
            grad = grads[name][step] * min(1.0, 1.0 / (total[step] + 1e-6))
            update, state = rule.update(jax.numpy.asarray(grad), state, param)
            param = optax.apply_updates(param, update)
        out[name] = np.asarray(param)
    return out


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "optim/fixtures")
    random = np.random.default_rng(20240)
    # fp32 values, so that fp32 and fp64 runs start from and see exactly the same numbers. Norms
    # fall from about 10 to 0.1, so clipping is on in the first steps and off in the last.
    scale = np.geomspace(1.0, 0.01, STEPS)
    start = {k: random.normal(size=s).astype(np.float32).astype(np.float64)
             for k, s in SHAPES.items()}
    grads = {k: np.stack([random.normal(size=s) * c for c in scale]).astype(np.float32)
             for k, s in SHAPES.items()}
    wide = {k: g.astype(np.float64) for k, g in grads.items()}
    tensors = {f"start.{k}": v.astype(np.float32) for k, v in start.items()}
    tensors |= {f"grad.{k}": g for k, g in grads.items()}
    for rule in RULES:
        for label, dtype in (("f64", torch.float64), ("f32", torch.float32)):
            for key, value in run_torch(rule, dtype, start, wide).items():
                tensors[f"{rule}.{label}.{key}"] = value
    for name, value in run_optax_lion(start, wide).items():
        gap = np.abs(value - tensors[f"lion.f64.{name}.step{STEPS}"]).max()
        assert gap < 1e-12, f"optax and lion-pytorch disagree on {name} by {gap}"
    for name in ("constant", "cosine", "linear", "wsd"):
        tensors[f"schedule.{name}"] = learning_rates(name)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / "parity.safetensors"))
    size = (folder / "parity.safetensors").stat().st_size
    print(f"wrote {folder / 'parity.safetensors'}: {len(tensors)} tensors, {size} bytes")


if __name__ == "__main__":
    main()
