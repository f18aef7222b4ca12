"""What PyTorch's caching allocator loses where the first backward pass allocates the gradients one by one.

    python tests/truth/caching_allocator.py

Plays three micro-batches of a Llama-like model, tensor by tensor (eager operators, FlashAttention, a loss on fp32
copies of the whole logits, no pipeline, no tensor parallelism), through the algorithm of the allocator's pool of large
blocks (c10/cuda/CUDACachingAllocator.cpp of PyTorch 2.0: the block that fits best, split where more than 1 MiB is left,
joined with free neighbors, whole free segments released before it gives up). Printed in GB: the most that is alive at
once, the least memory in which it runs, the difference, and two fp32 copies of the logits, which cost/memory.py charges
for it. A simulation: it was held against the verdicts of published runs, not against an allocator on a GPU.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

MIB = 2**20
LARGE, SHARED_SEGMENT, ROUNDED = 10 * MIB, 20 * MIB, 2 * MIB  # kMinLargeAlloc, kLargeBuffer, kRoundLarge


class OutOfMemory(Exception):
    """No block fits, and no segment can be had."""


@dataclass
class Block:
    number: int
    size: int
    asked: int = 0
    before: Block | None = None
    after: Block | None = None
    used: bool = True


@dataclass
class Allocator:
    """The large pool; blocks of up to 1 MiB are another pool's, and left out."""

    capacity: float
    reserved: int = 0
    alive: int = 0
    most_alive: int = 0
    free_blocks: list[tuple[int, int, Block]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)

    def take(self, size: float) -> Block:
        asked = max(512, -(-int(size) // 512) * 512)
        self.alive += asked
        self.most_alive = max(self.most_alive, self.alive)
        if asked <= MIB:
            return Block(-1, asked, asked)
        at = bisect.bisect_left(self.free_blocks, (asked,))
        block = self._segment(asked) if at == len(self.free_blocks) else self.free_blocks.pop(at)[2]
        block.used, block.asked = True, asked
        if block.size - asked > MIB:
            rest = Block(next(self.numbers), block.size - asked, 0, block, block.after, used=False)
            if block.after:
                block.after.before = rest
            block.after, block.size = rest, asked
            self._keep(rest)
        return block

    def give(self, *blocks: Block) -> None:
        for block in blocks:
            self.alive -= block.asked
            if block.number >= 0:
                self._join(block)

    def _join(self, block: Block) -> None:
        block.used = False
        if (after := block.after) and not after.used:
            self._drop(after)
            block.size, block.after = block.size + after.size, after.after
            if block.after:
                block.after.before = block
        if (before := block.before) and not before.used:
            self._drop(before)
            before.size, before.after = before.size + block.size, block.after
            if before.after:
                before.after.before = before
            block = before
        self._keep(block)

    def _segment(self, asked: int) -> Block:
        size = SHARED_SEGMENT if asked < LARGE else -(-asked // ROUNDED) * ROUNDED
        if self.reserved + size > self.capacity:
            whole = [block for _, _, block in self.free_blocks if block.before is None and block.after is None]
            self.reserved -= sum(block.size for block in whole)
            for block in whole:
                self._drop(block)
        if self.reserved + size > self.capacity:
            raise OutOfMemory
        self.reserved += size
        return Block(next(self.numbers), size)

    def _keep(self, block: Block) -> None:
        bisect.insort(self.free_blocks, (block.size, block.number, block))

    def _drop(self, block: Block) -> None:
        self.free_blocks.pop(bisect.bisect_left(self.free_blocks, (block.size, block.number)))


@dataclass(frozen=True)
class Case:
    """A model in bf16 with ZeRO-1 over `dp` ranks; tokens of one micro-batch."""

    tokens: int
    dp: int
    recomputed: bool = False  # whole layers
    fused_norm: bool = True
    hidden: int = 5120
    layers: int = 40
    ffn: int = 13824
    vocab: int = 128000

    @property
    def weights(self) -> dict[str, int]:
        """Elements of a layer's products."""
        h, f = self.hidden, self.ffn
        return {"qkv": 3 * h * h, "out": h * h, "gate": h * f, "up": h * f, "down": f * h}


@dataclass
class Step:
    """One step's tensors, in the order in which eager PyTorch allocates and frees them."""

    case: Case
    pool: Allocator
    gradients: set[str] = field(default_factory=set)
    wide: list[Block] = field(default_factory=list)  # a layer's eager norms keep fp32 copies until their backward pass

    def run(self, micro_batches: int = 3) -> None:
        case, take = self.case, self.pool.take
        ends = case.vocab * case.hidden
        for size in (ends, *(size for _ in range(case.layers) for size in case.weights.values()), ends):
            take(2 * size)
        total = 2 * ends + case.layers * sum(case.weights.values())
        for _ in ("weights", "first moments", "second moments"):  # in fp32, of this rank's shard
            take(4 * total / case.dp)
        for _ in range(micro_batches):
            self._micro_batch()

    def _micro_batch(self) -> None:
        case, take, give = self.case, self.pool.take, self.pool.give
        hidden, logits = 2 * case.tokens * case.hidden, case.tokens * case.vocab
        x, inputs, kept = take(hidden), list[Block](), list[dict[str, Block]]()
        for _ in range(case.layers):
            inputs.append(x)
            x, tensors = self._forward(x)
            if case.recomputed:
                give(*tensors.values())
            kept.append(tensors)
        self.wide = []
        normed = self._norm()
        output = take(2 * logits)  # the caller keeps it to the end
        copy, log_softmax = take(4 * logits), take(4 * logits)
        give(copy)
        of_result, of_copy = take(4 * logits), take(4 * logits)
        give(of_result, log_softmax)
        narrow = take(2 * logits)
        give(of_copy)
        back = take(hidden)
        self._gradient("head", case.vocab * case.hidden)
        give(narrow, normed, *self.wide)
        gradient = take(hidden)
        give(back, x)
        for layer in reversed(range(case.layers)):
            tensors = kept[layer]
            if case.recomputed:
                again, tensors = self._forward(inputs[layer])
                give(again)
            gradient = self._backward(layer, gradient, tensors)
            give(inputs[layer])
        self._gradient("embedding", case.vocab * case.hidden)
        give(gradient, output)

    def _gradient(self, name: str, size: int) -> None:
        """The first one stays; later ones are added to it and dropped."""
        block = self.pool.take(2 * size)
        if name in self.gradients:
            self.pool.give(block)
        self.gradients.add(name)

    def _norm(self) -> Block:
        hidden = 2 * self.case.tokens * self.case.hidden
        if self.case.fused_norm:
            return self.pool.take(hidden)
        wide, narrow = self.pool.take(2 * hidden), self.pool.take(hidden)
        result = self.pool.take(hidden)
        self.pool.give(narrow)
        self.wide.append(wide)
        return result

    def _forward(self, x: Block) -> tuple[Block, dict[str, Block]]:
        take, give = self.pool.take, self.pool.give
        hidden, inner = 2 * self.case.tokens * self.case.hidden, 2 * self.case.tokens * self.case.ffn
        self.wide = []
        kept = {"normed": self._norm(), "qkv": take(3 * hidden)}
        for name in ("query", "key"):  # rotated
            cosine, half, sine = take(hidden), take(hidden), take(hidden)
            give(half)
            kept[name] = take(hidden)
            give(cosine, sine)
        kept["attention"] = take(hidden)
        projected = take(hidden)
        kept["middle"] = take(hidden)
        give(projected)
        kept["normed again"] = self._norm()
        for name in ("gate", "up", "activated", "product"):
            kept[name] = take(inner)
        projected = take(hidden)
        result = take(hidden)
        give(projected)
        return result, kept | {f"wide {i}": block for i, block in enumerate(self.wide)}

    def _backward(self, layer: int, gradient: Block, kept: dict[str, Block]) -> Block:
        take, give, size = self.pool.take, self.pool.give, self.case.weights
        hidden, inner = 2 * self.case.tokens * self.case.hidden, 2 * self.case.tokens * self.case.ffn
        product = take(inner)
        self._gradient(f"{layer} down", size["down"])
        give(kept["product"])
        activated, up = take(inner), take(inner)
        give(product, kept["up"], kept["activated"])
        gate = take(inner)
        give(activated, kept["gate"])
        sides = []
        for name, used in (("up", up), ("gate", gate)):
            sides.append(take(hidden))
            self._gradient(f"{layer} {name}", size[name])
            give(used)
        gradient = self._through_norm(gradient, sides, kept["normed again"])
        give(kept["middle"])
        back = take(hidden)
        self._gradient(f"{layer} out", size["out"])
        wide = take(2 * hidden)  # FlashAttention sums the queries' gradients in fp32
        parts = [take(hidden) for _ in range(3)]
        give(wide, back, kept["attention"], kept["query"], kept["key"])
        joined = take(3 * hidden)
        give(*parts, kept["qkv"])
        side = take(hidden)
        self._gradient(f"{layer} qkv", size["qkv"])
        give(joined)
        gradient = self._through_norm(gradient, [side], kept["normed"])
        give(*(block for name, block in kept.items() if name.startswith("wide")))
        return gradient

    def _through_norm(self, gradient: Block, sides: list[Block], normed: Block) -> Block:
        hidden = 2 * self.case.tokens * self.case.hidden
        if len(sides) == 2:
            total = self.pool.take(hidden)
            self.pool.give(*sides)
            sides = [total]
        inner = self.pool.take(hidden)
        self.pool.give(*sides, normed)
        result = self.pool.take(hidden)
        self.pool.give(inner, gradient)
        return result


def alive_and_needed(case: Case) -> tuple[float, float]:
    """Bytes: the most that is alive at once, and the least capacity in which the step runs, to 0.1 GB."""
    pool = Allocator(float("inf"))
    Step(case, pool).run()
    low, high = 0.0, 2.0 * pool.most_alive
    while high - low > 1e8:
        middle = (low + high) / 2
        low, high = (low, middle) if _runs(case, middle) else (middle, high)
    return pool.most_alive, high


def _runs(case: Case, capacity: float) -> bool:
    try:
        Step(case, Allocator(capacity)).run()
    except OutOfMemory:
        return False
    return True


# Llama 13B with 128,000 words on A100 of 80 GB (85.2 GB usable, 0.7 of them CUDA's and NCCL's), with what the published
# runs did (Hagemann et al. 2023, arXiv:2311.05610).
CASES = {
    "2,048 tokens, 32 GPUs, fused norm: ran": Case(2048, 32),
    "2,048 tokens, 64 GPUs, fused norm: ran": Case(2048, 64),
    "2,048 tokens, 64 GPUs: out of memory": Case(2048, 64, fused_norm=False),
    "8,192 tokens, 64 GPUs, recomputed: ran": Case(8192, 64, recomputed=True, fused_norm=False),
}


def main() -> None:
    """Print every case."""
    print(f"{'case':42} {'alive':>6} {'needed':>7} {'lost':>5} {'two copies':>11}")
    for name, case in CASES.items():
        alive, needed = alive_and_needed(case)
        copies = 8 * case.tokens * case.vocab
        print(f"{name:42} {alive / 1e9:6.1f} {needed / 1e9:7.1f} {(needed - alive) / 1e9:5.1f} {copies / 1e9:11.1f}")


if __name__ == "__main__":
    main()
