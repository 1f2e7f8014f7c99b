"""Trains a small GPT on the sources of the Python standard library, through flash_attn4.

    python examples/train_gpt.py                      two minutes on two CPU cores
    python examples/train_gpt.py --device cuda --width 1024 --layers 16 --heads 16 --kv-heads 4 \\
        --context 4096 --batch 8 --vocabulary 8192 --compile

It trains twice, once with flash_attn_func and once with torch's own attention. Both runs start from
the same seed and see the same batches, so their loss curves must lie on each other; and both must
end well below the entropy of a model that knows only how often each token occurs.

Into the folder of --out go the curves, loss.png, and every figure, results.json.
"""

import argparse
import collections
import gc
import json
import math
import re
import resource
import statistics
import sysconfig
import time
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from flash_attn4 import flash_attn_func

matplotlib.use("Agg")  # draws into files, needs no display
import matplotlib.pyplot as plt

# ---- Text ----------------------------------------------------------------------------------------

# Other people's packages, code that varies between installations, and tables that are not code.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
SKIPPED_FOLDERS |= {"encodings", "pydoc_data"}
MAX_TEXT_BYTES = 8_000_000
HELD_OUT_EVERY = 10  # every tenth file is kept from training


def read_texts() -> tuple[bytes, bytes]:
    """The sources of the installed standard library: (training text, held-out text)."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path.relative_to(root) for path in root.rglob("*.py")]
    files = sorted(path for path in files if SKIPPED_FOLDERS.isdisjoint(path.parts))
    texts: tuple[list[bytes], list[bytes]] = ([], [])
    size = 0
    for index, path in enumerate(files):
        text = (root / path).read_bytes()
        size += len(text)
        if size > MAX_TEXT_BYTES:
            break
        texts[index % HELD_OUT_EVERY == 0].append(text)
    if not all(texts):
        raise SystemExit(f"train_gpt: needs Python sources below {root}, found {len(files)}")
    return b"\n".join(texts[False]), b"\n".join(texts[True])


# A word or a run of punctuation (each with the blank before it), underscores, a digit, white space.
PIECE = re.compile(rb" ?[A-Za-z]+| ?[^\w\s]+|_+|\d|\s+")


class Vocabulary:
    """The 256 bytes, and the pieces of text that save most; any other piece is spelled in bytes."""

    def __init__(self, text: bytes, size: int):
        counts = collections.Counter(PIECE.findall(text))
        saved = {piece: count * (len(piece) - 1) for piece, count in counts.items()}
        best = sorted((p for p in saved if len(p) > 1), key=lambda piece: (-saved[piece], piece))
        self.pieces = [bytes([byte]) for byte in range(256)] + best[: size - 256]
        self.codes = {piece: [code] for code, piece in enumerate(self.pieces)}

    def encode(self, text: bytes) -> Tensor:
        pieces = PIECE.findall(text)
        return torch.tensor([code for piece in pieces for code in self.codes.get(piece, piece)])

    def decode(self, tokens: list[int]) -> str:
        return b"".join(self.pieces[token] for token in tokens).decode(errors="replace")


def unigram_entropy(tokens: Tensor) -> float:
    """Nats per token of the best guess that ignores what came before."""
    share = torch.bincount(tokens).double() / len(tokens)
    return -torch.special.xlogy(share, share).sum().item()


# ---- Model ---------------------------------------------------------------------------------------


def fa4_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return flash_attn_func(q, k, v, causal=True)


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # torch puts the heads before the sequence
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2)


ATTENTION = {"fa4": fa4_attention, "sdpa": sdpa_attention}


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE: turns feature pairs (i, i + half) of each head by an angle proportional to position."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Block(nn.Module):
    def __init__(self, args: argparse.Namespace, attention):
        super().__init__()
        self.attention = attention
        self.head_dim = args.width // args.heads
        self.heads = args.heads, args.kv_heads, args.kv_heads  # GQA: query heads share key heads
        self.norm1 = nn.RMSNorm(args.width)
        self.qkv = nn.Linear(args.width, sum(self.heads) * self.head_dim, bias=False)
        self.proj = nn.Linear(args.width, args.width, bias=False)
        self.norm2 = nn.RMSNorm(args.width)
        self.gate_up = nn.Linear(args.width, 6 * args.width, bias=False)
        self.down = nn.Linear(3 * args.width, args.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = self.qkv(self.norm1(x)).unflatten(-1, (-1, self.head_dim))
        q, k, v = heads.split(self.heads, dim=2)  # (batch, seqlen, heads, head_dim)
        q, k = (F.rms_norm(x, (self.head_dim,)) for x in (q, k))  # bounds the scores
        q, k = (rotate(x, cos, sin).to(v.dtype) for x in (q, k))
        x = x + self.proj(self.attention(q, k, v).flatten(2))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class GPT(nn.Module):
    def __init__(self, args: argparse.Namespace, vocabulary_size: int, attention):
        super().__init__()
        self.embed = nn.Embedding(vocabulary_size, args.width)
        self.blocks = nn.ModuleList(Block(args, attention) for _ in range(args.layers))
        self.norm = nn.RMSNorm(args.width)
        half = args.width // args.heads // 2
        angles = torch.outer(torch.arange(args.context), 10000.0 ** -(torch.arange(half) / half))
        self.register_buffer("angles", angles[:, None])  # (context, 1, half): alike for all heads
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                ends_branch = name.endswith(("proj.weight", "down.weight"))
                branches = 2 * args.layers if ends_branch else 1  # their sum stays bounded
                nn.init.normal_(weight, std=0.02 / math.sqrt(branches))

    def forward(self, tokens: Tensor) -> Tensor:
        angles = self.angles[: tokens.shape[1]]
        cos, sin = angles.cos(), angles.sin()
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.linear(self.norm(x), self.embed.weight)  # the embedding is the output layer too


# ---- Training ------------------------------------------------------------------------------------


def precision(args: argparse.Namespace) -> torch.autocast:
    enabled = args.dtype == "bfloat16"
    return torch.autocast(args.device, dtype=torch.bfloat16, enabled=enabled)


def loss_of(model: nn.Module, windows: Tensor, args: argparse.Namespace) -> Tensor:
    """Mean nats per token; windows: (batch, context + 1) tokens."""
    with precision(args):
        logits = model(windows[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: nn.Module, tokens: Tensor, args: argparse.Namespace) -> float:
    """Loss on the same windows each time, spread evenly over the held-out text."""
    first = torch.linspace(0, len(tokens) - args.context - 1, 8 * args.batch).long()
    windows = tokens[first[:, None] + torch.arange(args.context + 1)].to(args.device)
    losses = [loss_of(model, batch, args) for batch in windows.split(args.batch)]
    return torch.stack(losses).mean().item()


def make_optimizers(model: GPT, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, where it needs far fewer steps; AdamW for the rest.

    Muon launches hundreds of small kernels: where a GPU is to be measured and not its host, AdamW
    for all, fused.
    """
    adamw = {"lr": args.lr, "betas": (0.9, 0.95), "weight_decay": 0.0}
    if args.optimizer == "adamw":
        return [torch.optim.AdamW(model.parameters(), fused=True, **adamw)]
    matrices = [weight for weight in model.blocks.parameters() if weight.ndim == 2]
    others = [model.embed.weight, *(weight for weight in model.parameters() if weight.ndim == 1)]
    return [
        torch.optim.Muon(matrices, lr=args.lr, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, **adamw),
    ]


def train(name: str, tokens: Tensor, held_out_tokens: Tensor, args: argparse.Namespace) -> dict:
    """One run with the attention of that name; the seed determines everything random."""
    torch._dynamo.reset()  # the run before compiled a model of its own
    memory_before = start_of_memory(args.device)
    torch.manual_seed(args.seed)
    model = GPT(args, args.vocabulary, ATTENTION[name]).to(args.device)
    compiled = torch.compile(model, fullgraph=True) if args.compile else model
    optimizers = make_optimizers(model, args)

    def rate(step: int) -> float:
        """Warm-up, then straight down to a twentieth; relative to the peak learning rate."""
        return min((step + 1) / max(1, args.steps // 20), 1.05 - step / args.steps)

    schedules = [torch.optim.lr_scheduler.LambdaLR(each, rate) for each in optimizers]
    order = torch.Generator().manual_seed(args.seed)
    losses, held_out, seconds = [], [], []
    progress = tqdm(range(1, args.steps + 1), desc=f"{name:>4}", unit="step", mininterval=1)
    for step in progress:
        started = time.perf_counter()
        first = torch.randint(len(tokens) - args.context, (args.batch, 1), generator=order)
        windows = tokens[first + torch.arange(args.context + 1)].to(args.device)
        loss = loss_of(compiled, windows, args)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stage in (*optimizers, *schedules):
            stage.step()
        model.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
        if step % max(1, args.steps // 10) == 0 or step == args.steps:
            held_out.append((step, held_out_loss(model, held_out_tokens, args)))
        progress.set_postfix_str(
            f"loss {losses[-1]:.3f}" + (f", held out {held_out[-1][1]:.3f}" if held_out else ""),
            refresh=False,
        )
    return {
        "model": model,
        "losses": losses,
        "held_out": held_out,
        "tokens_per_second": args.batch * args.context / statistics.median(seconds),
        "peak_memory_bytes": peak_memory(args.device) - memory_before,
    }


@torch.no_grad()
def sample(model: GPT, vocabulary: Vocabulary, prompt: str, args: argparse.Namespace) -> str:
    """The prompt and 200 tokens more, drawn one by one."""
    tokens = vocabulary.encode(prompt.encode()).tolist()
    random = torch.Generator().manual_seed(args.seed)
    for _ in range(200):
        window = torch.tensor([tokens[-args.context :]], device=args.device)
        with precision(args):
            logits = model(window)[0, -1].float().cpu()
        likely = torch.softmax(logits / 0.8, dim=0)  # sharper than trained: fewer slips
        tokens.append(torch.multinomial(likely, 1, generator=random).item())
    return vocabulary.decode(tokens)


# ---- Memory --------------------------------------------------------------------------------------

MEMORY_OF = {"cpu": "peak memory of the process", "cuda": "peak GPU memory"}


def start_of_memory(device: str) -> int:
    """Bytes that other runs hold on the GPU; from here on its peak is this run's."""
    if device != "cuda":
        return 0
    x = torch.ones(8, 8, device=device, requires_grad=True)
    (x @ x).sum().backward()  # what cuBLAS keeps for itself belongs to no run
    del x
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# ---- Results -------------------------------------------------------------------------------------


def draw(runs: dict[str, dict], entropy: float, path: Path) -> None:
    """Loss curves, and below them the distance between the two runs."""
    figure, axes = plt.subplots(
        len(runs), squeeze=False, sharex=True, figsize=(8, 6), height_ratios=[3, 1][: len(runs)]
    )
    loss_axis, *gap_axis = axes[:, 0]
    for (name, run), width, marker in zip(runs.items(), (3.0, 0.8), "ox", strict=False):
        steps = range(1, len(run["losses"]) + 1)
        (line,) = loss_axis.plot(steps, run["losses"], linewidth=width, label=f"{name}, training")
        held_out = zip(*run["held_out"], strict=True)
        loss_axis.plot(*held_out, marker, color=line.get_color(), label=f"{name}, held out")
    loss_axis.axhline(entropy, color="black", linestyle=":", label="unigram entropy")
    loss_axis.set(ylabel="nats per token", title="GPT on the Python standard library")
    loss_axis.legend()
    for axis in gap_axis:
        axis.semilogy(steps, gaps(runs), color="black", linewidth=0.8)
        axis.set(ylabel="|fa4 - sdpa|")
    axes[-1, 0].set_xlabel("step")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def gaps(runs: dict[str, dict]) -> list[float]:
    """Distance of the two training losses at every step."""
    first, second = (run["losses"] for run in runs.values())
    return [abs(a - b) for a, b in zip(first, second, strict=True)]


def write_results(runs: dict[str, dict], entropy: float, args: argparse.Namespace) -> Path:
    """Options and figures of the runs; nats per token, one loss per step."""
    kept = "losses", "held_out", "tokens_per_second", "peak_memory_bytes"
    model = next(iter(runs.values()))["model"]
    results = {
        "options": {**vars(args), "out": str(args.out)},
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "unigram_entropy": entropy,
        "runs": {name: {key: run[key] for key in kept} for name, run in runs.items()},
    }
    path = args.out / "results.json"
    path.write_text(json.dumps(results) + "\n")
    return path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attention", choices=(*ATTENTION, "both"), default="both")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on cpu")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), metavar="DIR")
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate")
    sizes = {"steps": 400, "seed": 0, "batch": 4, "context": 256, "vocabulary": 2048}
    sizes |= {"width": 128, "layers": 3, "heads": 4, "kv-heads": 2}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{default}")
    args = parser.parse_args()
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    return args


def main() -> None:
    args = parse()
    train_text, held_out_text = read_texts()
    vocabulary = Vocabulary(train_text, args.vocabulary)
    tokens, held_out_tokens = vocabulary.encode(train_text), vocabulary.encode(held_out_text)
    entropy = unigram_entropy(held_out_tokens)
    print(
        f"text: {len(train_text):,} bytes to train on, {len(held_out_text):,} held out, "
        f"{len(train_text) / len(tokens):.2f} bytes per token\n"
        f"unigram entropy of the held-out text: {entropy:.3f} nats per token"
    )
    runs = {}
    for name in ATTENTION if args.attention == "both" else (args.attention,):
        run = runs[name] = train(name, tokens, held_out_tokens, args)
        print(
            f"{name}: held-out loss {run['held_out'][-1][1]:.3f} nats per token, "
            f"{run['tokens_per_second']:,.0f} tokens/s, "
            f"{MEMORY_OF[args.device]} {run['peak_memory_bytes'] / 2**30:.2f} GiB"
        )
    if len(runs) == 2:
        gap = gaps(runs)
        step = gap.index(max(gap)) + 1
        print(f"largest difference of the loss curves: {max(gap):.4f}, at step {step}")
    args.out.mkdir(parents=True, exist_ok=True)
    draw(runs, entropy, args.out / "loss.png")
    print(f"figures: {write_results(runs, entropy, args)}")
    print(f"loss curves: {args.out / 'loss.png'}\n\nsampled text:\n")
    print(sample(next(iter(runs.values()))["model"], vocabulary, "import os\n\n\ndef", args))


if __name__ == "__main__":
    main()
