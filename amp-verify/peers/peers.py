"""What `cargo amp bench --peers` measures beside its own trainer: the same models, data, clipping and
metrics under Lightning and under loops written by hand.

One process an engine. Each line on standard input is a JSON object, each answer a line on standard
output; an answer with "error" ends the task it belongs to.

  (at the start)                               -> {"versions": {"torch": ..., ...}}
  {"prepare": {model, precision, batch, ...}}  -> {"ready": true}    after the warm-up
  {"go": steps}                                -> {"steps": n, "seconds": s, "peak_memory_bytes": b}
  {"end": true}                                -> {"ended": true}
"""

import argparse
import gc
import json
import logging
import os
import sys
import time
import warnings

# Libraries print; the answers keep standard output to themselves.
ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def answer(**fields):
    ANSWERS.write(json.dumps(fields) + "\n")


def request():
    line = sys.stdin.readline()
    return json.loads(line) if line else None


def missing(error):
    name = (error.name or str(error)).split(".")[0]
    answer(error=f"{os.path.basename(sys.executable)} has no {name}: pip install {name}")
    sys.exit(0)


parser = argparse.ArgumentParser()
parser.add_argument("--engine", choices=["lightning", "torch-loop", "torch-fused", "torch-compile"])
parser.add_argument("--device", default="cpu", help="cpu, or cuda:N")
parser.add_argument("--threads", type=int)
options = parser.parse_args()

try:
    import torch
    from torch import nn
    from torch.nn import functional as F

    if options.engine == "lightning":
        try:
            import lightning.pytorch as pl
        except ModuleNotFoundError as error:
            if error.name != "lightning":
                raise
            import pytorch_lightning as pl
        from torchmetrics import Accuracy
except ModuleNotFoundError as error:
    missing(error)

warnings.filterwarnings("ignore")
for name in ["lightning.pytorch", "pytorch_lightning", "lightning"]:
    logging.getLogger(name).setLevel(logging.ERROR)

DEVICE = torch.device(options.device)
CUDA = DEVICE.type == "cuda"
DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def block(width, out, dropout):
    return [nn.Linear(width, out), nn.BatchNorm1d(out), nn.ReLU(), nn.Dropout(dropout)]


class Demo(nn.Sequential):
    """MixedPrecisionDemo."""

    accuracy, schedule = True, "cosine"

    def __init__(self, input_size, hidden_size):
        half = hidden_size // 2
        super().__init__(
            *block(input_size, hidden_size, 0.2),
            *block(hidden_size, hidden_size, 0.2),
            *block(hidden_size, half, 0.2),
            nn.Linear(half, 10),
        )


class Advanced(nn.Module):
    """AdvancedAMPModel."""

    accuracy, schedule = False, "one-cycle"

    def __init__(self, input_size, d_model, nhead, dim_feedforward):
        super().__init__()
        norm = nn.LayerNorm(d_model)
        self.features = nn.Sequential(nn.Linear(input_size, d_model), norm, nn.GELU(), nn.Dropout(0.1))
        self.block = nn.TransformerEncoderLayer(d_model, nhead, dim_feedforward, 0.1, batch_first=True)
        head = [nn.Linear(d_model, 512), nn.ReLU(), nn.Dropout(0.2), nn.Linear(512, 10)]
        self.classifier = nn.Sequential(*head)

    def forward(self, x):
        return self.classifier(self.block(self.features(x).unsqueeze(1)).squeeze(1))


class PrecisionTest(nn.Sequential):
    """PrecisionTestModel."""

    accuracy, schedule = False, None

    def __init__(self, input_size):
        layers = [nn.Linear(input_size, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU()]
        super().__init__(*layers, nn.Linear(64, 10))


MODELS = {"MixedPrecisionDemo": Demo, "AdvancedAMPModel": Advanced, "PrecisionTestModel": PrecisionTest}


def build(task):
    torch.manual_seed(0)
    return MODELS[task["model"]](**task["hyperparameters"])


def examples(task):
    torch.manual_seed(42)
    count = task["batch"] * task["batches"]
    return torch.randn(count, task["features"]), torch.randint(10, (count,))


def optimizer(net, **more):
    if isinstance(net, PrecisionTest):
        return torch.optim.Adam(net.parameters(), lr=1e-3, **more)
    return torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-4, **more)


def schedule(net, optimizer):
    """The schedule and whether it moves by steps; the figures are of more steps than it has."""
    if net.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50), False
    if net.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=10**6), True
    return None, False


def synchronize():
    if CUDA:
        torch.cuda.synchronize()


class Clock:
    """Answers "go" with a chunk of steps: `turn` before the first and after each step."""

    def __init__(self, warm_up):
        self.left, self.steps, self.first = warm_up, None, True

    def turn(self):
        """Whether to go on."""
        if self.left > 0:
            self.left -= 1
            return True
        synchronize()
        if self.steps is None:
            answer(ready=True)
        else:
            seconds = time.perf_counter() - self.start
            # What tensors asked for, as on our side.
            peak = torch.cuda.memory_stats()["requested_bytes.all.peak"] if CUDA else None
            answer(steps=self.steps, seconds=seconds, peak_memory_bytes=peak)
        asked = request() or {"end": True}
        if "go" not in asked:
            return False
        if self.first and CUDA:
            torch.cuda.reset_peak_memory_stats()
        self.first = False
        self.steps, self.left = asked["go"], asked["go"] - 1
        self.start = time.perf_counter()
        return True


def by_hand(task, fused, compiled):
    clip, precision, batch = task["clip"], task["precision"], task["batch"]
    inputs, targets = (tensor.to(DEVICE) for tensor in examples(task))
    net = build(task).to(DEVICE)
    forward = torch.compile(net, mode="reduce-overhead") if compiled else net
    adam = optimizer(net, **({"fused": True} if fused else {}))
    scheduler, by_steps = schedule(net, adam)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=precision == "16-mixed")
    dtype = DTYPES.get(precision)
    losses = torch.zeros((), dtype=torch.float64, device=DEVICE)
    hits = torch.zeros((), dtype=torch.int64, device=DEVICE)
    clock = Clock(task["warm_up"])
    while True:
        for at in range(0, len(targets), batch):
            if not clock.turn():
                return
            x, target = inputs[at : at + batch], targets[at : at + batch]
            adam.zero_grad(set_to_none=True)
            with torch.autocast(DEVICE.type, dtype or torch.bfloat16, enabled=dtype is not None):
                output = forward(x)
                loss = F.cross_entropy(output, target)
            scaler.scale(loss).backward()
            scaler.unscale_(adam)
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            scaler.step(adam)
            scaler.update()
            losses += loss.detach() * batch
            if net.accuracy:
                hits += (output.detach().argmax(1) == target).sum()
            if scheduler and by_steps:
                scheduler.step()
        if scheduler and not by_steps:
            scheduler.step()
        losses.zero_(), hits.zero_()


def under_lightning(task):
    class Task(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = build(task)
            if self.net.accuracy:
                self.accuracy = Accuracy(task="multiclass", num_classes=10)

        def training_step(self, batch, _):
            x, target = batch
            output = self.net(x)
            loss = F.cross_entropy(output, target)
            self.log("train_loss", loss, on_step=True, on_epoch=True)
            if self.net.accuracy:
                self.accuracy(output.argmax(1), target)
                self.log("train_acc", self.accuracy, on_epoch=True)
            return loss

        def configure_optimizers(self):
            adam = optimizer(self.net)
            scheduler, by_steps = schedule(self.net, adam)
            if scheduler is None:
                return adam
            interval = "step" if by_steps else "epoch"
            return [adam], [{"scheduler": scheduler, "interval": interval}]

    class Turns(pl.Callback):
        def __init__(self):
            self.clock = Clock(task["warm_up"] - 1)

        def on_train_batch_end(self, trainer, *_):
            if not trainer.should_stop and not self.clock.turn():
                trainer.should_stop = True

    data = torch.utils.data.TensorDataset(*examples(task))
    loader = torch.utils.data.DataLoader(data, task["batch"], shuffle=True, drop_last=True)
    trainer = pl.Trainer(
        max_epochs=-1,
        precision=task["precision"],
        accelerator="gpu" if CUDA else "cpu",
        devices=[DEVICE.index or 0] if CUDA else 1,
        callbacks=[Turns()],
        enable_checkpointing=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=task["clip"],
    )
    trainer.fit(Task(), loader)


def run(task):
    match options.engine:
        case "lightning":
            under_lightning(task)
        case "torch-loop":
            by_hand(task, fused=False, compiled=False)
        case "torch-fused":
            by_hand(task, fused=True, compiled=False)
        case "torch-compile":
            by_hand(task, fused=True, compiled=True)


def main():
    if options.threads:
        torch.set_num_threads(options.threads)
    if CUDA:
        torch.cuda.set_device(DEVICE)
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    if options.engine == "lightning":
        versions["lightning"] = pl.__version__
    answer(versions=versions)
    while (asked := request()) is not None:
        if "prepare" not in asked:
            continue
        try:
            run(asked["prepare"])
            answer(ended=True)
        except BaseException as error:  # whatever it is, it is the answer
            answer(error=" ".join(f"{type(error).__name__}: {error}".split())[:200])
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()
        if options.engine == "torch-compile":
            torch._dynamo.reset()


if __name__ == "__main__":
    main()
