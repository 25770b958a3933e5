"""Fixtures of the optimizer room: what independent implementations make of the same gradients.

Usage:   python scripts/fixtures_optim.py [OUTPUT_FOLDER]
Example: python scripts/fixtures_optim.py optim/fixtures
Needs:   torch, numpy, safetensors, transformers, lion-pytorch, optax (with jax), schedulefree,
         bitsandbytes (its CPU build). Tests only read what it writes, parity.safetensors; run
         this again when a rule is added.

Two parameters (a matrix that decays and a bias that does not) take 50 steps with random gradients,
global clipping to norm 1 (torch.nn.utils.clip_grad_norm_), warm-up and cosine (torch schedulers).
Oracles: torch.optim.AdamW; lion-pytorch, which must agree with optax.lion in fp64; the formula of
Sophia's paper, which must agree with optax.contrib's; schedulefree's own AdamW.

The 8-bit rules take one parameter of two blocks and a part. bitsandbytes' code books, quantizer and
dequantizer surround the formula of its GPU kernels: its CPU optimizer looks codes up in a table of
65536 even bins, too coarse for small values, and decays before the step.
"""

import pathlib
import sys

import bitsandbytes
import jax
import numpy as np
import optax
import schedulefree
import torch
from bitsandbytes.functional import create_dynamic_map, dequantize_blockwise
from lion_pytorch import Lion
from safetensors.numpy import save_file
from torch.optim.lr_scheduler import CosineAnnealingLR, ConstantLR, LinearLR, SequentialLR
from torch.nn.utils import clip_grad_norm_
from transformers import get_wsd_schedule

jax.config.update("jax_enable_x64", True)

STEPS, WARMUP, FINAL_RATIO = 50, 5, 0.1
SHAPES = {"matrix": (17, 7), "bias": (13,)}
RULES = {  # peak lr, betas, weight decay
    "adamw": (0.01, (0.9, 0.95), 0.1),
    "lion": (0.003, (0.95, 0.98), 1.0),
    "sophia": (0.01, (0.965, 0.99), 0.2),
    "schedule_free": (0.02, (0.9, 0.999), 0.1),
    "adamw_8bit": (0.01, (0.9, 0.95), 0.1),
    "lion_8bit": (0.003, (0.95, 0.98), 1.0),
}
SOPHIA_TOKENS, SOPHIA_EVERY, SOPHIA_GAMMA, SOPHIA_EPS = 64, 10, 0.05, 1e-12
BLOCK_ELEMENTS, BLOCK = 600, 256  # two blocks and 88 elements


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
        norm = clip_grad_norm_(params.values(), 1.0)
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


def run_schedule_free(dtype, start, grads):
    peak, betas, weight_decay = RULES["schedule_free"]
    params = {k: torch.tensor(v, dtype=dtype, requires_grad=True) for k, v in start.items()}
    groups = [{"params": [params["matrix"]], "weight_decay": weight_decay},
              {"params": [params["bias"]], "weight_decay": 0.0}]
    optimizer = schedulefree.AdamWScheduleFree(
        groups, lr=peak, betas=betas, eps=1e-8, warmup_steps=WARMUP, foreach=False)
    optimizer.train()
    out = {}
    for step in range(STEPS):
        for name, param in params.items():
            param.grad = torch.tensor(grads[name][step], dtype=dtype)
        clip_grad_norm_(params.values(), 1.0)
        optimizer.step()
        if step in (0, 9, STEPS - 1):
            for name, param in params.items():
                out[f"{name}.step{step + 1}"] = param.detach().numpy().copy()
    optimizer.eval()
    for name, param in params.items():
        for key in ("z", "exp_avg_sq"):
            out[f"{name}.{key}"] = optimizer.state[param][key].numpy().copy()
        out[f"{name}.eval"] = param.detach().numpy().copy()
    return out


def run_sophia(dtype, start, grads):
    """Algorithm 3; the estimates are Gauss-Newton-Bartlett's of another step's gradient."""
    peak, (b1, b2), weight_decay = RULES["sophia"]
    rates = learning_rates("cosine", peak)
    theta = {k: torch.tensor(v, dtype=dtype) for k, v in start.items()}
    m, h = ({k: torch.zeros_like(v) for k, v in theta.items()} for _ in range(2))
    optax_theta = {k: jax.numpy.asarray(v) for k, v in start.items()}
    optax_m = {k: jax.numpy.zeros_like(v) for k, v in optax_theta.items()}
    out, free, total = {}, 0, 0
    for step in range(STEPS):
        g = {k: torch.tensor(v[step], dtype=dtype, requires_grad=True) for k, v in grads.items()}
        for value in g.values():
            value.grad = value.detach().clone()
        clip_grad_norm_(g.values(), 1.0)
        for name in SHAPES:
            if step % SOPHIA_EVERY == 0:
                sampled = torch.tensor(grads[name][(step + 25) % STEPS], dtype=dtype)
                h[name] = b2 * h[name] + (1 - b2) * SOPHIA_TOKENS * sampled ** 2
            decay = weight_decay if name == "matrix" else 0.0
            m[name] = b1 * m[name] + (1 - b1) * g[name].grad
            ratio = m[name] / torch.clamp(SOPHIA_GAMMA * h[name], min=SOPHIA_EPS)
            free, total = free + (ratio.abs() < 1).sum().item(), total + ratio.numel()
            theta[name] = theta[name] * (1 - rates[step] * decay) \
                - rates[step] * torch.clamp(ratio, -1, 1)
            if step in (0, 9, STEPS - 1):
                out[f"{name}.step{step + 1}"] = theta[name].numpy().copy()
            if dtype == torch.float64:
                optax_theta[name], optax_m[name] = optax_sophia_step(
                    optax_theta[name], g[name].grad, optax_m[name], h[name],
                    (step + 1, rates[step], decay))
    for name in SHAPES:
        out[f"{name}.exp_avg"], out[f"{name}.hessian"] = m[name].numpy(), h[name].numpy()
        if dtype == torch.float64:
            gap = np.abs(np.asarray(optax_theta[name]) - out[f"{name}.step{STEPS}"]).max()
            assert gap < 1e-12, f"optax and the formula disagree on {name} by {gap}"
    assert 0.1 < free / total < 0.9, f"{free} of {total} ratios are not clipped"
    return out


def optax_sophia_step(theta, grad, m, h, numbers):
    """optax divides the momentum by 1 - b1^t; a gamma and an eps so divided undo that."""
    t, rate, decay = numbers
    b1, b2 = RULES["sophia"][1]
    correction = 1 - b1 ** t
    rule = optax.contrib.sophia(
        rate, b1=b1, b2=b2, gamma=SOPHIA_GAMMA / correction, eps=SOPHIA_EPS / correction,
        weight_decay=decay, update_interval=2 * STEPS, hessian_diagonal_fn=optax.identity())
    first, *rest = rule.init(theta)
    first = first._replace(
        count=jax.numpy.asarray(t - 1, jax.numpy.int32), mu=m, nu=jax.numpy.asarray(h.numpy()))
    update, state = rule.update(jax.numpy.asarray(grad.numpy()), (first, *rest), theta)
    return optax.apply_updates(theta, update), state[0].mu


def quantize(values, code):
    """bitsandbytes' quantizer by exact distances in fp32, which fp64 tensors take."""
    return torch.ops.bitsandbytes.quantize_blockwise(values.double(), code, BLOCK)


class Quantized:
    """A state in bitsandbytes' hands."""

    def __init__(self, signed):
        self.code = create_dynamic_map(signed)
        self.codes = torch.zeros(BLOCK_ELEMENTS, dtype=torch.uint8)
        self.scales = torch.zeros(-(-BLOCK_ELEMENTS // BLOCK), dtype=torch.float32)

    def load(self, dtype):
        values = dequantize_blockwise(
            self.codes, absmax=self.scales, code=self.code, blocksize=BLOCK)
        return values.numpy().astype(dtype)

    def store(self, values):
        self.codes, self.scales = quantize(torch.from_numpy(values.astype(np.float32)), self.code)


def block_gradient(grads, step):
    """One of a few gradients, ever smaller by exact factors; grads are stored once."""
    return grads[step % len(grads)] * 2.0 ** -(step // 10)


def run_8bit(rule, dtype, start, grads):
    peak, (b1, b2), weight_decay = RULES[rule]
    rates = learning_rates("cosine", peak)
    theta = start.astype(dtype)
    states = [Quantized(True), Quantized(False)][:2 if rule == "adamw_8bit" else 1]
    out = {}
    for step in range(STEPS):
        grad = block_gradient(grads, step)
        norm = np.sqrt((grad.astype(np.float64) ** 2).sum())
        g = grad.astype(dtype) * dtype(min(1.0, 1.0 / (norm + 1e-6)))
        rate, t = rates[step], step + 1
        old = [state.load(dtype) for state in states]
        if rule == "adamw_8bit":
            m = b1 * old[0] + (1 - b1) * g
            v = b2 * old[1] + (1 - b2) * g * g
            root = np.sqrt(v) * (1 / np.sqrt(1 - b2 ** t)).astype(dtype) + 1e-8
            theta = (theta - rate.astype(dtype) / dtype(1 - b1 ** t) * m / root)
            theta = theta * dtype(1 - rate * weight_decay)
            new = [m, v]
        else:
            u = b1 * old[0] + (1 - b1) * g
            theta = theta * dtype(1 - rate * weight_decay) - dtype(rate) * np.sign(u)
            new = [b2 * old[0] + (1 - b2) * g]
        assert theta.dtype == dtype
        for state, values in zip(states, new):
            state.store(values)
        if step == 0:
            check_first_step(rule, start, g, theta, rate)
        if step in (0, 9, STEPS - 1):
            out[f"block.step{step + 1}"] = theta
    for name, state in zip(("exp_avg", "exp_avg_sq"), states):
        out[f"block.{name}"] = state.codes.numpy()
        out[f"block.{name}_absmax"] = state.scales.numpy()
    return out


def check_first_step(rule, start, grad, theta, rate):
    """bitsandbytes' own optimizer, while its quantizer has not acted; decay after by hand."""
    _, betas, weight_decay = RULES[rule]
    param = torch.nn.Parameter(torch.from_numpy(start.astype(np.float32)))
    param.grad = torch.from_numpy(grad.astype(np.float32))
    if rule == "adamw_8bit":
        optimizer = bitsandbytes.optim.AdamW8bit(
            [param], lr=rate, betas=betas, eps=1e-8, weight_decay=0.0, min_8bit_size=1)
    else:
        optimizer = bitsandbytes.optim.Lion8bit(
            [param], lr=rate, betas=betas, weight_decay=weight_decay, min_8bit_size=1)
    optimizer.step()
    found = param.detach().numpy()
    if rule == "adamw_8bit":
        found = found * (1 - rate * weight_decay)
    gap = np.abs(found - theta).max() / np.abs(theta).max()
    assert gap < 1e-6, f"bitsandbytes takes another first step of {rule}: {gap}"


def quantizer_cases(random):
    """Code books, and values of many magnitudes with their codes."""
    values = random.uniform(-1, 1, 1000) * 10.0 ** -random.uniform(0, 8, 1000)
    out = {"quantize.values": values.astype(np.float32)}
    for name, signed in (("signed", True), ("unsigned", False)):
        code = create_dynamic_map(signed)
        rounded = torch.from_numpy(out["quantize.values"])
        codes, scales = quantize(rounded if signed else rounded.abs(), code)
        out[f"code_book.{name}"] = code.numpy()
        out[f"quantize.{name}"] = codes.numpy()
        out[f"quantize.{name}_absmax"] = scales.numpy()
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
    block_random = np.random.default_rng(20250)
    block_start = block_random.normal(size=BLOCK_ELEMENTS).astype(np.float32)
    spread = 10.0 ** -block_random.uniform(0, 3, BLOCK_ELEMENTS)  # magnitudes within a block
    block_grads = (spread * block_random.normal(size=(5, BLOCK_ELEMENTS))).astype(np.float32)
    tensors |= {"start.block": block_start, "grad.block": block_grads}
    tensors |= quantizer_cases(block_random)
    for label, dtype in (("f64", torch.float64), ("f32", torch.float32)):
        results = {rule: run_torch(rule, dtype, start, wide) for rule in ("adamw", "lion")}
        results["sophia"] = run_sophia(dtype, start, wide)
        results["schedule_free"] = run_schedule_free(dtype, start, wide)
        wide_of = np.float64 if label == "f64" else np.float32
        for rule in ("adamw_8bit", "lion_8bit"):
            results[rule] = run_8bit(rule, wide_of, block_start, block_grads)
        for rule, values in results.items():
            tensors |= {f"{rule}.{label}.{key}": value for key, value in values.items()}
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
