"""NextSymbol in PyTorch, for `cargo amp bench --workload next-symbol --peers --peers-script peers.py`.

amp starts this program once for each engine and talks to it in lines of JSON; `cargo doc -p amp-verify`,
module `bench::peers`, describes the protocol.
"""

import argparse
import json
import os
import sys
import time

# Libraries print to standard output. The answers therefore use a copy of the descriptor of standard output, and
# everything else goes to standard error.
ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def answer(**fields):
    ANSWERS.write(json.dumps(fields) + "\n")


MODES = {"torch-compile": "reduce-overhead", "torch-compile-default": "default"}
parser = argparse.ArgumentParser()
parser.add_argument("--engine")
parser.add_argument("--device", default="cpu")
parser.add_argument("--threads", type=int, default=1)
options = parser.parse_args()
if options.engine not in ["torch-loop", "torch-fused", *MODES]:
    answer(error="unknown engine: expected torch-loop, torch-fused, torch-compile or torch-compile-default")
    sys.exit(0)

import torch
from torch import nn
from torch.nn import functional as F

DEVICE = torch.device(options.device)
DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class NextSymbol(nn.Module):
    """The same layers as `src/next_symbol.rs`."""

    def __init__(self, symbols, width, learning_rate=1e-2):
        super().__init__()
        self.learning_rate = learning_rate
        self.token = nn.Embedding(symbols, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True)
        self.head = nn.Linear(width, symbols)

    def forward(self, ids):
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], device=ids.device)
        return self.head(self.block(self.token(ids), src_mask=mask, is_causal=True))


def synchronize():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def run(task):
    torch.manual_seed(0)
    net = NextSymbol(**task["hyperparameters"]).to(DEVICE)
    forward = torch.compile(net, mode=MODES[options.engine]) if options.engine in MODES else net
    fused = {"fused": True} if options.engine != "torch-loop" else {}
    adam = torch.optim.AdamW(net.parameters(), lr=net.learning_rate, weight_decay=1e-2, **fused)
    shape = (task["batches"], task["batch"], task["tokens"])
    inputs, targets = (torch.randint(task["classes"], shape, device=DEVICE) for _ in range(2))
    dtype = DTYPES.get(task["precision"])
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=task["precision"] == "16-mixed")
    losses = torch.zeros((), device=DEVICE)

    def step(at):
        adam.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = F.cross_entropy(forward(inputs[at]).flatten(0, 1), targets[at].flatten())
        scaler.scale(loss).backward()
        scaler.unscale_(adam)
        torch.nn.utils.clip_grad_norm_(net.parameters(), task["clip"])
        scaler.step(adam)
        scaler.update()
        losses.add_(loss.detach())

    for at in range(task["warm_up"]):
        step(at % task["batches"])
    synchronize()
    answer(ready=True)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    while "go" in (asked := json.loads(sys.stdin.readline() or '{"end": true}')):
        start = time.perf_counter()
        for at in range(asked["go"]):
            step(at % task["batches"])
        synchronize()
        seconds = time.perf_counter() - start
        cuda = DEVICE.type == "cuda"
        peak = torch.cuda.memory_stats()["requested_bytes.all.peak"] if cuda else None
        answer(steps=asked["go"], seconds=seconds, peak_memory_bytes=peak)
    answer(ended=True)


torch.set_num_threads(options.threads)
answer(versions={"python": sys.version.split()[0], "torch": torch.__version__})
for line in sys.stdin:
    asked = json.loads(line)
    if "prepare" not in asked:
        continue
    try:
        run(asked["prepare"])
    except Exception as error:
        answer(error=" ".join(f"{type(error).__name__}: {error}".split())[:200])
    torch._dynamo.reset()
