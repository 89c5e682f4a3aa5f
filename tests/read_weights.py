"""Loads weights that tests/tests/pytorch.rs saved into PyTorch's copies of the models.

Usage, from a folder that has fixtures/oracles/recorders: read_weights.py FOLDER. FOLDER has, for
each model and precision, NAME.PRECISION.weights and NAME.PRECISION.io with `input` and `logits`.
"""

import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")

import torch  # noqa: E402

from recorders.copies import COPIES, build  # noqa: E402
from recorders.safetensors_file import load  # noqa: E402

# precision -> (dtype, bound of the difference from PyTorch's logits; None: not compared, because kernels round differently)
PRECISIONS = {
    "32-true": (torch.float32, 1e-6),
    "64-true": (torch.float64, 1e-12),
    "bf16-true": (torch.bfloat16, None),
    "16-true": (torch.float16, None),
}


def check(name, precision, folder):
    dtype, bound = PRECISIONS[precision]
    copy = build(name).to(dtype).eval()
    weights = load((folder / f"{name}.{precision}.weights").read_bytes())
    expected = {key: tensor.dtype for key, tensor in copy.state_dict().items()}
    found = {key: tensor.dtype for key, tensor in weights.items()}
    assert found == expected, f"{name}, {precision}: {found} instead of {expected}"
    copy.load_state_dict(weights, strict=True)
    if bound is None:
        return
    own = load((folder / f"{name}.{precision}.io").read_bytes())
    x = own["input"]
    with torch.no_grad():
        logits = copy(x.to(dtype) if x.is_floating_point() else x)
    distance = (logits - own["logits"]).abs().max().item()
    bound *= max(1.0, logits.abs().max().item())
    assert distance <= bound, f"{name}, {precision}: logits differ by {distance:.1e}, more than {bound:.1e}"


def main(folder):
    torch.set_num_threads(1)
    for name in COPIES:
        for precision in PRECISIONS:
            check(name, precision, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
