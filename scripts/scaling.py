#!/usr/bin/env python3
"""A model on paper of Grove's step time and memory on 8 to 4096 GPUs, printed as Markdown tables.

Usage: scripts/scaling.py [--gpu h100|h200] [--network FACTOR] [--all] [--check]
  --gpu      which GPU; the default is h100
  --network  factor on the bandwidth between nodes; the default is 1
  --all      every stage that fits, not only the fastest with either reduction for each size and GPU count
  --check    only the comparison with published figures
Example: scripts/scaling.py --gpu h200 --all

Nothing here is measured on such a machine: each constant below says where it is from, and ASSUMED where it is from
nowhere. A step is played through unit by unit on two queues, compute and communication, as the trainer issues them:
the gather of the next unit runs behind the compute of this one, and the reduction of a unit behind the backward of
those before it. Plain Python, no packages.
"""
import argparse
import dataclasses
import math

# ---- GPUs and fabric: NVIDIA's data sheets (H100 SXM5, H200 SXM, dense bf16; NVLink 4: 900 GB/s both ways) ----
PEAK_FLOPS = 989.4e12
GPUS_A_NODE = 8
# 400 Gb/s a GPU, of which NCCL's developers expect 46 to 48 GB/s (github.com/NVIDIA/nccl-tests, issue 290).
NIC_BYTES_PER_SECOND = 46e9
# ASSUMED: 0.8 of 450 GB/s each way for rings.
NVLINK_BYTES_PER_SECOND = 360e9
# Seconds by hop of a ring and a tree, and by call: what NCCL's own tuner reckons with (src/graph/tuning.cc).
RING_HOP_NVLINK, RING_HOP_NETWORK, TREE_HOP_NVLINK, TREE_HOP_NETWORK = 3.4e-6, 14e-6, 4e-6, 14e-6
CALL = 8.4e-6
# ASSUMED: messages to different peers that are under way at once in an all-to-all.
MESSAGES_AT_ONCE = 32
# ASSUMED: part of the fabric's bandwidth that is left, by ranks: collisions and upper tiers of switches.
FABRIC = {8: 1.0, 64: 1.0, 128: 0.95, 512: 0.9, 4096: 0.75}
# ---- Kernels ----
# ASSUMED: part of the peak that matrix products of these shapes reach.
PRODUCT_EFFICIENCY = 0.65
# FlashAttention-2 on H100 (Shah et al. 2024, arXiv:2407.08608, abstract: 35 %), which libtorch's fused attention is.
ATTENTION_EFFICIENCY = 0.35
# ASSUMED: part of the memory's bandwidth that elementwise kernels and the optimizer reach.
MEMORY_EFFICIENCY = 0.8
# ASSUMED: compute that a second of communication beside it costs, in seconds (multiprocessors and memory are shared).
CONTENTION = 0.05
# ASSUMED: memory of a GPU that nothing of this model accounts for: context, NCCL's buffers, fragmentation.
RESERVED_BYTES = 6e9
SEQUENCE = 8192
BATCH_TOKENS = 4 << 20
GIB = 1 << 30
MODES = ("fast", "exact", "exact in two levels")


@dataclasses.dataclass(frozen=True)
class Gpu:
    memory_bytes: float
    bytes_per_second: float
    product_efficiency: float = PRODUCT_EFFICIENCY


GPUS = {"h100": Gpu(80e9, 3.35e12), "h200": Gpu(141e9, 4.8e12)}


@dataclasses.dataclass(frozen=True)
class Model:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    tied: bool = False
    vocab: int = 128256

    @property
    def kv(self):
        return self.hidden // self.heads * self.kv_heads

    @property
    def block(self):
        """Parameters of a block."""
        return self.hidden * (2 * self.hidden + 2 * self.kv + 3 * self.ffn + 2)

    @property
    def units(self):
        """Parameters of each unit: embedding, blocks, head."""
        table = self.hidden * self.vocab
        return [table, *[self.block] * self.layers, self.hidden + (0 if self.tied else table)]

    @property
    def flops_per_token(self):
        """The FLOPs that MFU counts (README.md): causal attention half, recomputation not."""
        products = self.layers * self.block + self.vocab * self.hidden
        return 6 * products + 6 * self.layers * SEQUENCE * self.hidden


MODELS = {"1B": Model(2048, 16, 32, 8, 8192, tied=True), "8B": Model(4096, 32, 32, 8, 14336),
          "70B": Model(8192, 80, 64, 8, 28672)}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What runs where: `group` is how many ranks share a model (all, or a node for hybrid sharding)."""
    ranks: int
    stage: int
    group: int
    recompute: str
    tokens: int = SEQUENCE

    @property
    def name(self):
        return "3 in a node" if self.group < self.ranks else str(self.stage)

    @property
    def micro_steps(self):
        return max(1, BATCH_TOKENS // (self.ranks * self.tokens))


# ---- Communication: seconds of one call over `ranks` ranks of whole nodes, `size` in bytes of the whole tensor ----

def fabric(ranks):
    """Part of the cards' bandwidth that so many ranks see."""
    return next(share for upper, share in sorted(FABRIC.items()) if ranks <= upper)


def ring(size, ranks):
    """All-gather or reduce-scatter: every byte enters every node once, over all its network cards together."""
    if ranks == 1:
        return 0.0
    nodes = math.ceil(ranks / GPUS_A_NODE)
    bandwidth = NVLINK_BYTES_PER_SECOND
    if nodes > 1:
        bandwidth = min(bandwidth, GPUS_A_NODE * NIC_BYTES_PER_SECOND * fabric(ranks))
    latency = (ranks - nodes) * RING_HOP_NVLINK + (nodes - 1) * RING_HOP_NETWORK
    return CALL + latency + size * (ranks - 1) / ranks / bandwidth


def all_reduce(size, ranks):
    """Both halves of a ring's bytes, at a tree's latency."""
    nodes = math.ceil(ranks / GPUS_A_NODE)
    latency = 2 * ((min(ranks, GPUS_A_NODE) - 1) * TREE_HOP_NVLINK + math.log2(nodes) * TREE_HOP_NETWORK)
    bandwidth = NVLINK_BYTES_PER_SECOND
    if nodes > 1:
        bandwidth = min(bandwidth, GPUS_A_NODE * NIC_BYTES_PER_SECOND * fabric(ranks))
    return CALL + latency + 2 * size * (ranks - 1) / ranks / bandwidth


def all_to_all(size, ranks):
    """Each rank's `size` bytes in equal parts to all: what leaves the node does so over this rank's own card."""
    inside = min(ranks, GPUS_A_NODE)
    seconds = CALL + size * (inside - 1) / ranks / NVLINK_BYTES_PER_SECOND
    if ranks > GPUS_A_NODE:
        outside = ranks - GPUS_A_NODE
        seconds = max(seconds, CALL + outside / MESSAGES_AT_ONCE * RING_HOP_NETWORK
                      + size * outside / ranks / (NIC_BYTES_PER_SECOND * fabric(ranks)))
    return seconds


def between_nodes(size, ranks, hops, times=1):
    """What the ranks of one place in all nodes send each other, each over its own card: `size` bytes, so many times."""
    nodes = ranks // GPUS_A_NODE
    return CALL + hops * TREE_HOP_NETWORK + times * size * (nodes - 1) / nodes / (NIC_BYTES_PER_SECOND * fabric(ranks))


def reduction(plan, mode, parameters, last):
    """Seconds to reduce one unit's gradient in a micro-step; `last` of the step or not."""
    hybrid = plan.group < plan.ranks
    tree_hops = math.log2(plan.ranks / GPUS_A_NODE)
    if mode == "fast":
        if plan.stage == 0:
            return all_reduce(4 * parameters, plan.ranks) if last else 0.0
        if plan.stage == 1:
            return ring(4 * parameters, plan.ranks) if last else 0.0
        # An all-reduce is a reduce-scatter and an all-gather.
        across = between_nodes(4 * parameters / plan.group, plan.ranks, 2 * tree_hops, times=2)
        return ring(4 * parameters, plan.group) + (across if hybrid and last else 0.0)
    # Exact: one chain over all ranks in each micro-step, whoever holds the model; its terms travel in bf16.
    each = all_to_all(2 * parameters, plan.ranks)
    if mode == "exact in two levels" and plan.ranks > GPUS_A_NODE:
        # Not built: every 8 micro-batches of one node first, in a chain, then the fp32 sums of the nodes in a chain.
        each = (all_to_all(2 * parameters, GPUS_A_NODE)
                + between_nodes(4 * parameters / GPUS_A_NODE, plan.ranks, plan.ranks // GPUS_A_NODE / MESSAGES_AT_ONCE))
    if last and plan.stage == 0:
        each += ring(4 * parameters, plan.ranks)
    if last and hybrid:
        each += between_nodes(4 * parameters / plan.group, plan.ranks, tree_hops)
    return each


# ---- Compute: seconds ----

def block_seconds(model, gpu, plan):
    """(forward, backward) of one block for one micro-batch."""
    products = 2 * model.block / (PEAK_FLOPS * gpu.product_efficiency)
    attention = 2 * SEQUENCE * model.hidden / (PEAK_FLOPS * ATTENTION_EFFICIENCY)
    # Bytes that unfused elementwise kernels move in bf16: two norms, rotary angles, two residual sums, the gate.
    moved = (24 * model.hidden + 8 * model.kv + 10 * model.ffn) / (gpu.bytes_per_second * MEMORY_EFFICIENCY)
    forward = products + attention + moved
    # Attention's backward makes its scores again: 5 products for 2.
    backward = 2 * products + 2.5 * attention + 2 * moved
    again = {"none": 0.0, "elementwise": 0.6 * moved, "half": 0.5 * products + moved, "block": forward}[plan.recompute]
    return plan.tokens * forward, plan.tokens * (backward + again)


def unit_seconds(model, gpu, plan):
    """Forward and backward seconds of each unit. The head's logits go through memory a few times in fp32."""
    forward, backward = block_seconds(model, gpu, plan)
    product = plan.tokens * 2 * model.hidden * model.vocab / (PEAK_FLOPS * gpu.product_efficiency)
    logits = plan.tokens * 8 * model.vocab / (gpu.bytes_per_second * MEMORY_EFFICIENCY)
    lookup = plan.tokens * 8 * model.hidden / (gpu.bytes_per_second * MEMORY_EFFICIENCY)
    return ([lookup, *[forward] * model.layers, product + logits],
            [lookup, *[backward] * model.layers, 2 * product + 1.5 * logits])


def accumulate_bytes(plan, mode):
    """Bytes a parameter that adding up one micro-batch's gradient moves through memory, besides the collectives."""
    if mode != "fast":
        return 2 + 8 / plan.ranks
    return 10 if plan.stage < 2 else 6 + 8 / plan.group


# ---- One step ----

def play(gathers, work, reduces):
    """Seconds until all is done: a gather waits for the unit two before it, a reduction for its unit's compute."""
    computed, gathered = [], []
    queue = clock = 0.0
    for number in range(len(work) + 1):
        if number < len(work):
            queue = max(queue, computed[number - 2] if number >= 2 else 0.0) + gathers[number]
            gathered.append(queue)
        if number:
            clock = max(clock, gathered[number - 1]) + work[number - 1]
            computed.append(clock)
            if reduces[number - 1]:
                queue = max(queue, clock) + reduces[number - 1]
    return max(clock, queue)


def step(model, gpu, plan, mode):
    """(seconds of a step, seconds of it that communication adds)."""
    forward, backward = unit_seconds(model, gpu, plan)
    units = model.units
    nothing = [0.0] * len(units)
    gather = [ring(2 * parameters, plan.group) for parameters in units]
    seconds = alone = 0.0
    for number in range(plan.micro_steps):
        last = number == plan.micro_steps - 1
        # Below stage 3 the updated parameters come once, behind the first forward; at stage 0 nothing comes.
        in_forward = gather if plan.stage == 3 or (plan.stage and number == 0) else nothing
        in_backward = gather if plan.stage == 3 else nothing
        reduces = [reduction(plan, mode, parameters, last) if parameters else 0.0 for parameters in units]
        played = (play(in_forward, forward, nothing)
                  + play(in_backward[::-1], backward[::-1], reduces[::-1]))
        compute = sum(forward) + sum(backward)
        communication = sum(in_forward) + sum(in_backward) + sum(reduces)
        hidden = max(0.0, communication - (played - compute))
        extra = sum(units) * accumulate_bytes(plan, mode) / (gpu.bytes_per_second * MEMORY_EFFICIENCY)
        seconds += played + CONTENTION * hidden + extra
        alone += compute + extra
    # AdamW reads gradient, master and two moments, writes three and the bf16 copy; the norm reads the gradient again.
    own = sum(units) / {0: 1, 1: plan.ranks, 2: plan.ranks, 3: plan.group}[plan.stage]
    update = 34 * own / (gpu.bytes_per_second * MEMORY_EFFICIENCY) + 3 * all_reduce(64, plan.ranks)
    return seconds + update, seconds - alone


def memory_bytes(model, plan):
    """(model states, all) of one GPU: 18 bytes a parameter, divided as the stage says; then buffers, activations."""
    parameters, largest = sum(model.units), max(model.units)
    states = {0: 18 * parameters, 1: 6 * parameters + 12 * parameters / plan.ranks,
              2: 2 * parameters + 16 * parameters / plan.ranks, 3: 18 * parameters / plan.group}[plan.stage]
    # A unit's gradient in bf16 with what arrives of it, twice; and at stage 3 two gathered units.
    buffers = (8 + (4 if plan.stage == 3 else 0)) * largest
    every = 2 * (6 * model.hidden + 2 * model.kv + 3 * model.ffn)
    products = 2 * (3 * model.hidden + 2 * model.kv + 2 * model.ffn)
    kept = {"none": every, "elementwise": products, "half": products, "block": 2 * model.hidden}[plan.recompute]
    once = every if plan.recompute == "block" else 0
    return states, states + buffers + plan.tokens * (model.layers * kept + once) + 2 * (64 << 20)


def plans(model, gpu, ranks):
    """Each stage with the least recomputation that fits; those that do not fit at all are left out."""
    candidates = [(stage, ranks) for stage in range(4)]
    if ranks > GPUS_A_NODE:
        candidates.append((3, GPUS_A_NODE))
    for stage, group in candidates:
        for recompute in ("none", "elementwise", "block"):
            plan = Plan(ranks, stage, group, recompute)
            if memory_bytes(model, plan)[1] + RESERVED_BYTES <= gpu.memory_bytes:
                yield plan
                break


def row(name, model, gpu, plan):
    """One line of the table."""
    states, total = memory_bytes(model, plan)
    tokens = plan.tokens * plan.micro_steps
    cells = [name, str(plan.ranks), plan.name, plan.recompute, str(plan.micro_steps), f"{states / GIB:.1f}",
             f"{total / GIB:.0f}"]
    for mode in MODES:
        seconds, waited = step(model, gpu, plan, mode)
        mfu = model.flops_per_token * tokens / seconds / PEAK_FLOPS
        cells.append(f"{100 * mfu:.1f} ({100 * waited / seconds:.0f})")
        if mode == "fast":
            speed = tokens / seconds
        elif mode == "exact":
            ratio = tokens / seconds / speed
    return "| " + " | ".join([*cells, f"{ratio:.2f}", f"{speed:.0f}"]) + " |"


def tables(gpu, every):
    """The table: for each size and GPU count the best two plans by exact speed, or all that fit."""
    lines = ["| model | GPUs | stage | recompute | micro-steps | states GiB | all GiB | "
             + " | ".join(f"{mode}: MFU % (waits %)" for mode in MODES) + " | exact/fast | fast tokens/s a GPU |",
             "|" + " --- |" * 12]
    for name, model in MODELS.items():
        for ranks in (8, 64, 512, 4096):
            fitting = list(plans(model, gpu, ranks))
            if not fitting:
                lines.append(f"| {name} | {ranks} | none fits |" + " |" * 9)
            if not every:
                best = {min(fitting, key=lambda plan: step(model, gpu, plan, mode)[0]) for mode in MODES[:2] if fitting}
                fitting = [plan for plan in fitting if plan in best]
            lines += [row(name, model, gpu, plan) for plan in fitting]
    return "\n".join(lines)


def check():
    """The model beside torchtitan's published tokens/s a GPU (benchmarks/llama3_h100_202412_torchtitan.md): Llama 8B,
    FSDP2 with torch.compile, T 8192, 2 sequences a GPU, selective recomputation, H100 with HBM2e at 2.4 TB/s."""
    gpu = Gpu(96e9, 2.4e12)
    lines = ["| GPUs | published, compiled (eager) | this model | model/published |", "| --- | --- | --- | --- |"]
    for ranks, compiled, eager in ((8, 6667, 5762), (128, 6514, 5605)):
        plan = Plan(ranks, 3, ranks, "half", tokens=2 * SEQUENCE)
        # One micro-step, as they ran it.
        seconds = step(MODELS["8B"], gpu, plan, "fast")[0] / plan.micro_steps
        speed = plan.tokens / seconds
        lines.append(f"| {ranks} | {compiled} ({eager}) | {speed:.0f} | {speed / compiled:.2f} ({speed / eager:.2f}) |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="h100", choices=sorted(GPUS))
    parser.add_argument("--network", type=float, default=1.0, help="factor on the bandwidth between nodes")
    parser.add_argument("--all", action="store_true", help="every stage that fits")
    parser.add_argument("--check", action="store_true", help="only the comparison with published figures")
    given = parser.parse_args()
    FABRIC.update({ranks: share * given.network for ranks, share in FABRIC.items()})
    print(check() if given.check else tables(GPUS[given.gpu], given.all))


if __name__ == "__main__":
    main()
