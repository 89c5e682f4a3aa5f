"""Writes a wheel with the layout of a real one. The content of each file is its own name.

Usage: wheel.py FOLDER NAME==VERSION [cpu-index]
"""

import sys
import zipfile
from pathlib import Path

TORCH = """
torch/__init__.py
torch/include/ATen/ATen.h
torch/include/torch/csrc/api/include/torch/torch.h
torch/lib/libc10.so
torch/lib/libgomp.so.1
torch/lib/libshm.so
torch/lib/libshm/err.h
torch/lib/libtorch.so
torch/lib/libtorch_cpu.so
torch/lib/libtorch_global_deps.so
torch/lib/libtorch_python.so
""".split()
TORCH_CUDA = """
torch/lib/libc10_cuda.so
torch/lib/libcaffe2_nvrtc.so
torch/lib/libtorch_cuda.so
torch/lib/libtorch_cuda_linalg.so
torch/lib/libtorch_nvshmem.so
""".split()
# The files of some of NVIDIA's wheels. Every other wheel has one library, named after the wheel.
NVIDIA = {
    "nvidia-cuda-runtime": ["cu13/include/cuda_runtime.h", "cu13/lib/libcudart.so.13",
                            "cu13/lib/libcudart_static.a"],
    "nvidia-cuda-cupti": ["cu13/lib/libcupti.so.13", "cu13/lib/libnvperf_host.so"],
    "nvidia-cuda-nvrtc": ["cu13/lib/libnvrtc.so.13", "cu13/lib/libnvrtc.alt.so.13"],
    "nvidia-cusolver": ["cu13/lib/libcusolver.so.12", "cu13/lib/libcusolverMg.so.12"],
}

folder, wanted, index = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
name, version = wanted.split("==")
texts = {}
if name == "torch":
    version += "+cpu" if index == "cpu-index" else ""
    names = TORCH + ([] if index == "cpu-index" else TORCH_CUDA)
    texts["torch/version.py"] = f"__version__ = '{version}'\n"
else:
    own = name.removeprefix("nvidia-")
    names = [f"nvidia/{file}" for file in NVIDIA.get(name, [f"{own}/lib/lib{own}.so.1"])]
texts.update((name, f"{name}\n") for name in names)

with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as wheel:
    for path, text in texts.items():
        wheel.writestr(path, text)
    wheel.writestr(f"{name}-{version}.dist-info/METADATA", "")
    # A path that leads out of the target folder, which no real wheel contains.
    wheel.writestr("torch/lib/../../../outside.so", "")
