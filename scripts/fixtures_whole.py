"""Fixtures of the whole-matrix rules: what independent implementations make of the same gradients.

Usage:   python scripts/fixtures_whole.py [OUTPUT_FOLDER]
Example: python scripts/fixtures_whole.py optim/fixtures
Needs:   torch >= 2.9 (with Muon), numpy, safetensors, transformers, came-pytorch 0.1,
         adam-mini 1.1, galore-torch 1.0. Tests only read the result,
         optim/fixtures/whole.safetensors; run this again when a rule is added.

Each rule takes its parameters 50 steps along random gradients, clipped to a global norm of 1, with
warm-up and cosine; matrices decay. Oracles: torch.optim.Adafactor and Muon; the authors' packages
for CAME, Adam-mini and GaLore; for SOAP, of which there is no package, the paper's algorithm in
numpy, written apart from Grove's. Two oracles are bent, and only so far:
- torch's Muon computes its iteration in bf16. For the fp32 and fp64 fixtures its own source runs
  with that one cast taken out.
- GaLore's projector decomposes in fp32. In fp64 the cast is taken out. The sign of each singular
  vector, which no decomposition decides, is made that of its largest entry, as in Grove.
"""

import importlib.util
import inspect
import math
import pathlib
import sys
import types
from unittest import mock

import numpy as np
import torch
import torch.optim._muon as torch_muon
from adam_mini import Adam_mini
from came_pytorch import CAME
from safetensors.numpy import save_file

STEPS, WARMUP, FINAL_RATIO, CLIP_NORM = 50, 5, 0.1, 1.0
KEPT_STEPS = (1, 10, STEPS)
SHAPES = {"tall": (16, 6), "wide": (6, 16), "square": (8, 8), "fused": (6, 24), "norm": (6,),
          "bias": (13,)}
# Outputs of "fused", an [in, out] matrix: q and k of two heads of four, v of eight neurons.
FUSED_PARTS, HEADS, HEAD_DIM = ("wq", "wk", "wv"), 2, 4
WEIGHT_DECAY = 0.1


def multipliers():
    """Warm-up (step + 1) / w, then cosine to FINAL_RATIO."""
    out = []
    for step in range(STEPS):
        if step < WARMUP:
            out.append((step + 1) / WARMUP)
            continue
        progress = (step - WARMUP) / (STEPS - WARMUP)
        out.append(FINAL_RATIO + (1 - FINAL_RATIO) * 0.5 * (1 + math.cos(math.pi * progress)))
    return np.array(out)


def clip_scales(grads):
    squares = sum((g.astype(np.float64) ** 2).reshape(STEPS, -1).sum(axis=1)
                  for g in grads.values())
    return np.minimum(1.0, CLIP_NORM / (np.sqrt(squares) + 1e-6))


class Case:
    """The same start, gradients and learning rates for every rule, in one dtype."""

    def __init__(self, start, grads, dtype):
        self.start, self.grads, self.dtype = start, grads, dtype
        self.scales, self.rates = clip_scales(grads), multipliers()

    def params(self, names):
        return {name: torch.tensor(self.start[name], dtype=self.dtype, requires_grad=True)
                for name in names}

    def grad(self, name, step):
        return torch.tensor(self.grads[name][step], dtype=self.dtype) * float(self.scales[step])

    def run(self, optimizer, params, peak, pieces=None):
        """Steps `optimizer`; `pieces` maps a name to parameters that are parts of it."""
        out = {}
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = peak * float(self.rates[step])
            for name, param in params.items():
                whole = self.grad(name, step)
                if pieces and name in pieces:
                    for piece, part in zip(pieces[name], split(whole)):
                        piece.grad = part
                else:
                    param.grad = whole
            with torch.no_grad():
                optimizer.step()
            for name, param in params.items():
                if step + 1 in KEPT_STEPS:
                    value = join(pieces[name]) if pieces and name in pieces else param
                    out[f"{name}.step{step + 1}"] = value.detach().numpy().copy()
        return out


def split(fused):
    """[in, 3 out] -> three [out, in]."""
    return [part.T.contiguous() for part in fused.chunk(len(FUSED_PARTS), dim=1)]


def join(parts):
    return torch.cat([part.detach().T for part in parts], dim=1).contiguous()


def decayed(params):
    return [{"params": [p], "weight_decay": WEIGHT_DECAY if p.ndim == 2 else 0.0}
            for p in params.values()]


def states(optimizer, params, names):
    """The states of these names, flattened to [rows] and [cols] where torch keeps a dim of 1."""
    out = {}
    for name, param in params.items():
        for theirs, ours in names.items():
            value = optimizer.state[param].get(theirs)
            if value is not None:
                out[f"{name}.{ours}"] = value.detach().squeeze().numpy().copy()
    return out


def adafactor(case):
    params = case.params(("tall", "wide", "bias"))
    rule = torch.optim.Adafactor(decayed(params), lr=0.3, beta2_decay=-0.8, eps=(1e-18, 1e-3),
                                 d=1.0, foreach=False)
    out = case.run(rule, params, 0.3)
    return out | states(rule, params, {"row_var": "exp_avg_sq_row", "col_var": "exp_avg_sq_col",
                                       "variance": "exp_avg_sq"})


def came(case):
    params = case.params(("tall", "wide", "bias"))
    rule = CAME(decayed(params), lr=0.01, betas=(0.9, 0.95, 0.99))
    out = case.run(rule, params, 0.01)
    names = ("exp_avg", "exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_res_row",
             "exp_avg_res_col")
    return out | states(rule, params, {name: name for name in names})


def adam_mini(case):
    params = case.params(("fused", "tall", "norm", "bias"))
    pieces = [p.clone().requires_grad_() for p in split(params["fused"].detach())]
    named = [(f"layers.0.{name}.weight", p) for name, p in zip(FUSED_PARTS, pieces)]
    named += [("layers.0.feed_forward.weight", params["tall"]), ("norm.weight", params["norm"]),
              ("layers.0.feed_forward.bias", params["bias"])]
    # The package computes a head's elements as dim * dim // n_heads.
    head_numel = HEAD_DIM * SHAPES["fused"][0]
    rule = Adam_mini(named, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=WEIGHT_DECAY,
                     dim=head_numel, n_heads=head_numel, verbose=False)
    out = case.run(rule, params, 0.01, {"fused": pieces})
    fused = [rule.state[p] for p in pieces]
    firsts = [s["m"].view(p.size()) for s, p in zip(fused, pieces)]
    out["fused.exp_avg"] = join(firsts).numpy().copy()
    out["fused.exp_avg_sq_block"] = torch.cat([s["vmean"].flatten() for s in fused]).numpy()
    own = {name: p for name, p in params.items() if name != "fused"}
    out |= states(rule, own, {"m": "exp_avg", "vmean": "exp_avg_sq_block", "v": "exp_avg_sq_block"})
    out["norm.exp_avg_sq_block"] = out["norm.exp_avg_sq_block"].reshape(1)
    return out


def newton_schulz_without_cast():
    source = inspect.getsource(torch_muon._zeropower_via_newtonschulz)
    assert source.count("grad.bfloat16()") == 1
    scope = vars(torch_muon).copy()
    exec(source.replace("grad.bfloat16()", "grad.clone()"), scope)
    return scope["_zeropower_via_newtonschulz"]


def muon(case, adjust, is_bf16):
    params = case.params(("tall", "wide", "fused"))
    pieces = [p.clone().requires_grad_() for p in split(params["fused"].detach())]
    stepped = [params["tall"], params["wide"], *pieces]
    rule = torch.optim.Muon(stepped, lr=0.02, weight_decay=WEIGHT_DECAY, momentum=0.95,
                            adjust_lr_fn=adjust)
    iteration = torch_muon._zeropower_via_newtonschulz if is_bf16 else newton_schulz_without_cast()
    with mock.patch.object(torch_muon, "_zeropower_via_newtonschulz", iteration):
        out = case.run(rule, params, 0.02, {"fused": pieces})
    own = {name: p for name, p in params.items() if name != "fused"}
    out["fused.momentum_buffer"] = join(
        [rule.state[p]["momentum_buffer"] for p in pieces]).numpy().copy()
    return out | states(rule, own, {"momentum_buffer": "momentum_buffer"})


def import_galore():
    """The package's optimizer without its __init__, which needs bitsandbytes."""
    if "galore_torch" not in sys.modules:
        found = importlib.util.find_spec("galore_torch")
        package = types.ModuleType("galore_torch")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["galore_torch"] = package
    return importlib.import_module("galore_torch.adamw")


def svd_with_signs(matrix, full_matrices):
    u, s, vh = SVD(matrix, full_matrices=full_matrices)
    u = u * torch.sign(u.gather(0, u.abs().argmax(dim=0, keepdim=True)))
    vh = vh * torch.sign(vh.gather(1, vh.abs().argmax(dim=1, keepdim=True)))
    return u, s, vh  # no longer a decomposition: the projector takes u or vh alone


SVD = torch.linalg.svd


def galore(case):
    adamw = import_galore()
    params = case.params(("tall", "wide"))
    groups = [g | {"rank": 4, "update_proj_gap": 20, "scale": 0.25, "proj_type": "std"}
              for g in decayed(params)]
    rule = adamw.AdamW(groups, lr=0.02, betas=(0.9, 0.999), eps=1e-6, no_deprecation_warning=True)
    with mock.patch.object(torch.linalg, "svd", svd_with_signs), \
            mock.patch.object(torch.Tensor, "float", lambda self: self):
        out = case.run(rule, params, 0.02)
    for name, param in params.items():
        projector = rule.state[param]["projector"].ortho_matrix
        out[f"{name}.projector"] = projector.detach().contiguous().numpy().copy()
    return out | states(rule, params, {"exp_avg": "exp_avg_projected",
                                       "exp_avg_sq": "exp_avg_sq_projected"})


def soap_numpy(start, grads, rates, peak, max_dim):
    """Algorithm 3 of Vyas et al. 2024 with the official code's conventions: first step only sets
    the bases, then decay after the step, eps beside sqrt(v), QR every 10 steps."""
    beta1 = beta2 = shampoo = 0.95
    theta, kept = start.copy(), {}
    rows, cols = theta.shape
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    left = np.zeros((rows, rows)) if rows <= max_dim else None
    right = np.zeros((cols, cols)) if cols <= max_dim else None
    q_left, q_right = np.eye(rows), np.eye(cols)

    def eigenvectors(matrix):
        values, vectors = np.linalg.eigh(matrix)
        return vectors[:, np.argsort(-values)]

    for index in range(STEPS):
        grad, rate = grads[index], peak * rates[index]
        if index > 0:
            rotated = q_left.T @ grad @ q_right
            first = beta1 * first + (1 - beta1) * rotated
            second = beta2 * second + (1 - beta2) * rotated * rotated
            size = rate * np.sqrt(1 - beta2 ** index) / (1 - beta1 ** index)
            theta = theta - size * q_left @ (first / (np.sqrt(second) + 1e-8)) @ q_right.T
        theta = theta - rate * WEIGHT_DECAY * theta
        if left is not None:
            left = shampoo * left + (1 - shampoo) * grad @ grad.T
        if right is not None:
            right = shampoo * right + (1 - shampoo) * grad.T @ grad
        if index == 0:
            q_left = q_left if left is None else eigenvectors(left)
            q_right = q_right if right is None else eigenvectors(right)
        elif index % 10 == 0:
            momentum = q_left @ first @ q_right.T
            if left is not None:
                order = np.argsort(-np.einsum("ij,ik,kj->j", q_left, left, q_left))
                second = second[order, :]
                q_left = np.linalg.qr(left @ q_left[:, order])[0]
            if right is not None:
                order = np.argsort(-np.einsum("ij,ik,kj->j", q_right, right, q_right))
                second = second[:, order]
                q_right = np.linalg.qr(right @ q_right[:, order])[0]
            first = q_left.T @ momentum @ q_right
        if index + 1 in KEPT_STEPS:
            kept[f"step{index + 1}"] = theta.copy()
    # What does not depend on the signs of eigenvectors.
    kept["exp_avg_sq_rotated"] = second
    if left is not None:
        kept["covariance_left"] = left
    if right is not None:
        kept["covariance_right"] = right
    return kept


def soap(case):
    out = {}
    for name in ("square", "wide"):
        scaled = case.grads[name].astype(np.float64) * case.scales[:, None, None]
        kept = soap_numpy(case.start[name], scaled, case.rates, 0.02, max_dim=10)
        out |= {f"{name}.{key}": value for key, value in kept.items()}
    return out


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "optim/fixtures")
    random = np.random.default_rng(20241)
    # fp32 values, so that fp32 and fp64 runs start from and see exactly the same numbers. Norms
    # fall from about 18 to 0.18, so clipping is on in the first steps and off in the last.
    sizes = np.geomspace(1.0, 0.01, STEPS)
    start = {k: random.normal(size=s).astype(np.float32).astype(np.float64)
             for k, s in SHAPES.items()}
    grads = {k: np.stack([random.normal(size=s) * c for c in sizes]).astype(np.float32)
             for k, s in SHAPES.items()}
    tensors = {f"start.{k}": v.astype(np.float32) for k, v in start.items()}
    tensors |= {f"grad.{k}": g for k, g in grads.items()} | {"rates": multipliers()}
    for label, dtype in (("f64", torch.float64), ("f32", torch.float32)):
        case = Case(start, grads, dtype)
        found = {"adafactor": adafactor(case), "came": came(case), "adam_mini": adam_mini(case),
                 "muon.original": muon(case, "original", False),
                 "muon.match_rms": muon(case, "match_rms_adamw", False), "galore": galore(case)}
        if label == "f64":
            found["soap"] = soap(case)
        else:
            found["muon.bf16"] = muon(case, "match_rms_adamw", True)
        for rule, values in found.items():
            tensors |= {f"{rule}.{label}.{k}": np.ascontiguousarray(v) for k, v in values.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / "whole.safetensors"))
    size = (folder / "whole.safetensors").stat().st_size
    print(f"wrote {folder / 'whole.safetensors'}: {len(tensors)} tensors, {size} bytes")


if __name__ == "__main__":
    main()
