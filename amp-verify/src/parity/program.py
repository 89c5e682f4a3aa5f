"""Trains the PyTorch version of a model for `cargo amp parity`, with torch.autocast and GradScaler, on the batches
that `cargo amp parity` sends.

Each line on standard input is a request, a JSON object; each answer is a line on standard output. If a request
fails, its answer has the field "error" with the message.

  (at the start)                            -> {"versions": {"torch": ..., ...}}
  {"prepare": {precision, weights, ...}}    -> {"ready": true}
  {"train": FILE, "shares": [[...], ...]}   -> {"losses": [...], "skipped": [...], "scale": s, "attempts": [...]}
  {"epoch_end": true}                       -> {"moved": true}
  {"validate": FILE, "batches": n}          -> {"kept": true}
  {"end": true}                             -> {"metric": m, "peak_memory_bytes": b}

`attempts` has two numbers for each optimizer step: the loss scale, and the largest scaled gradient divided by
the largest f16 number (null if a gradient is not finite). `attempts` is empty if the loss is not scaled.

`prepare` has the fields precision, hyperparameters, plan (the training plan), clip ({"norm": c}, {"value": c} or
null), scaler (GradScaler's arguments) and weights (the path of a safetensors file). FILE is a safetensors file with batches. The
names of its tensors are BATCH/NAME. `shares` has one list for each optimizer step. The list contains, for each
batch of the step, the weight of the batch's loss in the loss of the step.
"""

import argparse
import contextlib
import gc
import importlib.util
import json
import math
import os
import struct
import sys
import types
import warnings

# Only answers may go to standard output. What libraries print goes to standard error.
ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def answer(**fields):
    ANSWERS.write(json.dumps(fields) + "\n")


parser = argparse.ArgumentParser()
parser.add_argument("--twin", help="the file with the class of the PyTorch version")
parser.add_argument("--name", help="the class")
parser.add_argument("--device", default="cpu", help="cpu, or cuda:N")
parser.add_argument("--threads", type=int)
options = parser.parse_args()

warnings.filterwarnings("ignore")
try:
    import torch
except ModuleNotFoundError as error:
    name = (error.name or str(error)).split(".")[0]
    answer(error=f"{os.path.basename(sys.executable)} has no {name}: pip install {name}")
    sys.exit(0)

# Switches TF32 off. By default, PyTorch runs convolutions and recurrent layers in TF32.
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
DEVICE = torch.device(options.device)
CUDA = DEVICE.type == "cuda"
LARGEST = torch.finfo(torch.float16).max
AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read(path):
    """Reads the tensors of a safetensors file."""
    with open(path, "rb") as file:
        data = bytearray(file.read())
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length].decode())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        dtype, count = DTYPES[entry["dtype"]], math.prod(entry["shape"])
        start = 8 + length + entry["data_offsets"][0]
        tensor = torch.empty(0, dtype=dtype)
        if count:
            tensor = torch.frombuffer(data, dtype=dtype, count=count, offset=start).clone()
        tensors[name] = tensor.reshape(entry["shape"])
    return tensors


class Batch(dict):
    """The tensors of a batch by name: batch.input is batch["input"]."""

    __getattr__ = dict.__getitem__


def batches(path, count):
    found = [Batch() for _ in range(count)]
    for name, tensor in read(path).items():
        at, field = name.split("/", 1)
        found[int(at)][field] = tensor.to(DEVICE)
    return found


def requested(what):
    """Returns the bytes that tensors on the GPU requested: `what` is "current" or "peak"."""
    return torch.cuda.memory_stats().get(f"requested_bytes.all.{what}", 0)


def load(net, path):
    """Copies the model's weights into the PyTorch version by name. Fails if a name of one side is missing on the other."""
    state = read(path)
    found = net.load_state_dict(state, strict=False)
    own = net.state_dict()
    loaded = {own[name].data_ptr() for name in state if name in own}
    # Two kinds of names may be missing in the file: further names of a tied tensor, and the names of batch norms' batch
    # counters, which have no effect on the results.
    is_there = lambda name: own[name].data_ptr() in loaded or name.endswith("num_batches_tracked")
    missing = [name for name in found.missing_keys if not is_there(name)]
    for what, names in [("not in the model", missing), ("not in the PyTorch version", found.unexpected_keys)]:
        if names:
            raise ValueError(f"{what}: {', '.join(names[:8])}")


class Step:
    """The argument `step` of `manual_step`, with which the PyTorch version trains on a batch itself."""

    def __init__(self, run):
        self.run, self.optimizers, self.loss = run, run.optimizers, None
        self.batch_idx = run.batch_idx

    def forward(self):
        return self.run.autocast()

    @contextlib.contextmanager
    def toggled(self, at):
        own = {id(p) for p in self.run.parameters(self.optimizers[at])}
        others = [p for p in self.run.net.parameters() if id(p) not in own and p.requires_grad]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def minimize(self, at, loss, clip=None):
        optimizer = self.optimizers[at]
        optimizer.zero_grad(set_to_none=True)
        self.run.scaler.scale(loss).backward()
        self.run.apply(optimizer, {"norm": clip} if clip else None)
        self.loss = loss.detach()


class Run:
    """Trains the PyTorch version under one precision."""

    def __init__(self, twin, task):
        torch.manual_seed(0)
        self.before = requested("current") if CUDA else 0
        self.net = getattr(twin, options.name)(types.SimpleNamespace(**task["hyperparameters"]))
        load(self.net, task["weights"])
        self.net.to(DEVICE).train()
        made = self.net.configure_optimizers(types.SimpleNamespace(**task["plan"]))
        optimizers, schedules = made if isinstance(made, tuple) else (made, [])
        self.optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        whole = lambda s: s if isinstance(s, dict) else {"scheduler": s, "interval": "epoch"}
        self.schedules = [whole(schedule) for schedule in schedules]
        self.dtype, self.clip = AUTOCAST.get(task["precision"]), task["clip"]
        scales = task["precision"] == "16-mixed"
        self.scaler = torch.amp.GradScaler(DEVICE.type, enabled=scales, **task["scaler"])
        self.outputs, self.steps, self.batch_idx, self.peak = [], 0, 0, None
        self.largest = 0.0
        if CUDA:
            torch.cuda.reset_peak_memory_stats()

    def autocast(self):
        dtype = self.dtype or torch.bfloat16
        return torch.autocast(DEVICE.type, dtype, enabled=self.dtype is not None)

    def parameters(self, optimizer):
        return [p for group in optimizer.param_groups for p in group["params"]]

    def measure(self, optimizer):
        """Updates `largest`, which is the largest scaled gradient of the step, divided by the largest f16 number."""
        gradients = [p.grad for p in self.parameters(optimizer) if p.grad is not None]
        if self.scaler.is_enabled() and gradients:
            largest = torch.stack([gradient.abs().max() for gradient in gradients]).max()
            size = float(largest) * self.scaler.get_scale() / LARGEST
            self.largest = max(self.largest, size if math.isfinite(size) else math.inf)

    def apply(self, optimizer, clip):
        self.scaler.unscale_(optimizer)
        self.measure(optimizer)
        if clip and "norm" in clip:
            torch.nn.utils.clip_grad_norm_(self.parameters(optimizer), clip["norm"])
        elif clip:
            torch.nn.utils.clip_grad_value_(self.parameters(optimizer), clip["value"])
        self.scaler.step(optimizer)
        for schedule in self.schedules:
            if schedule["interval"] == "step" and schedule["scheduler"].optimizer is optimizer:
                schedule["scheduler"].step()

    def step(self, window, shares):
        """Makes one optimizer step, and returns the losses of its batches."""
        if hasattr(self.net, "manual_step"):
            step = Step(self)
            self.net.manual_step(window[0], step)
            return [step.loss]
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        losses = []
        for batch, share in zip(window, shares):
            with self.autocast():
                loss = self.net.training_step(batch)
            losses.append(loss.detach())
            self.scaler.scale(loss if share == 1.0 else loss * share).backward()
        for optimizer in self.optimizers:
            self.apply(optimizer, self.clip)
        return losses

    def held(self):
        """Returns the bytes of parameters, buffers and optimizer state."""
        states = [o.state.values() for o in self.optimizers]
        kept = [t for s in states for entry in s for t in entry.values() if torch.is_tensor(t)]
        tensors = [*self.net.parameters(), *self.net.buffers(), *kept]
        return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())

    def counted(self, *step):
        """Makes an optimizer step and measures its peak memory on the CPU with the profiler."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        before, now, most = self.held(), 0, 0
        cpu = torch.profiler.ProfilerActivity.CPU
        with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
            losses = self.step(*step)
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            most = max(most, now)
        self.peak = before + most
        return losses

    def train(self, path, shares):
        found = iter(batches(path, sum(len(window) for window in shares)))
        losses, skipped, attempts = [], [], []
        for window in shares:
            before, self.largest = self.scaler.get_scale(), 0.0
            step = self.counted if self.steps == 2 and not CUDA else self.step
            losses += step([next(found) for _ in window], window)
            self.scaler.update()
            self.steps += 1
            self.batch_idx += len(window)
            skipped.append(self.scaler.get_scale() < before)
            if self.scaler.is_enabled():
                attempts.append((before, self.largest if math.isfinite(self.largest) else None))
            if hasattr(self.net, "on_train_batch_end"):
                self.net.on_train_batch_end()
        numbers = [float(loss) for loss in losses]
        numbers = [number if math.isfinite(number) else None for number in numbers]
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else None
        answer(losses=numbers, skipped=skipped, scale=scale, attempts=attempts)

    def epoch_end(self):
        for schedule in self.schedules:
            if schedule["interval"] == "epoch":
                schedule["scheduler"].step()
        self.batch_idx = 0
        answer(moved=True)

    def validate(self, path, count):
        self.net.eval()
        with torch.no_grad(), self.autocast():
            for batch in batches(path, count):
                output = self.net.validation_step(batch)
                output = output if isinstance(output, tuple) else (output,)
                self.outputs.append([tensor.detach().cpu() for tensor in output])
        answer(kept=True)

    def end(self):
        joined = [torch.cat(tensors) for tensors in zip(*self.outputs)]
        joined = [t.float() if t.is_floating_point() else t for t in joined]
        own = getattr(self.net, "metric", lambda first, *_: first.float().mean())
        value = float(own(*joined))
        if CUDA:
            # Subtracts the bytes that were in use before this run, because the trainer in Rust does so too.
            self.peak = requested("peak") - self.before
        answer(metric=value if math.isfinite(value) else None, peak_memory_bytes=self.peak)


def main():
    if options.threads:
        torch.set_num_threads(options.threads)
    if CUDA:
        torch.cuda.set_device(DEVICE)
    twin, run = None, None
    answer(versions={"python": sys.version.split()[0], "torch": torch.__version__})
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if twin is None:
                spec = importlib.util.spec_from_file_location("twin", options.twin)
                twin = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(twin)
            if "prepare" in asked:
                run = None
                gc.collect()
                run = Run(twin, asked["prepare"])
                answer(ready=True)
            elif "train" in asked:
                run.train(asked["train"], asked["shares"])
            elif "validate" in asked:
                run.validate(asked["validate"], asked["batches"])
            elif "epoch_end" in asked:
                run.epoch_end()
            else:
                run.end()
        except BaseException as error:  # every error becomes the answer
            at, place = error.__traceback__, ""
            while at is not None:
                if at.tb_frame.f_code.co_filename == options.twin:
                    place = f" (line {at.tb_lineno} of the PyTorch version)"
                at = at.tb_next
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            answer(error=text + place)


if __name__ == "__main__":
    main()
