"""What the benchmarks do, in Python: `peer.py parquet FILE` or `peer.py images FOLDER`.

For each line with a number of threads it does the work once, and answers with wall-clock and CPU seconds.
"""

import glob
import os
import sys
import time

import torch


def parquet(path):
    """Reads the whole table, and makes the tensors that the benchmark makes."""
    import numpy
    import pyarrow
    import pyarrow.parquet

    numbers = list("abcdefgh")

    def work(threads):
        pyarrow.set_cpu_count(threads)
        table = pyarrow.parquet.read_table(path, use_threads=threads > 1, read_dictionary=["city"])
        rows = numpy.empty((table.num_rows, len(numbers)), dtype=numpy.float32)
        for at, name in enumerate(numbers):
            rows[:, at] = table[name].to_numpy()
        city = table["city"].unify_dictionaries().combine_chunks().indices.to_numpy().astype(numpy.int64)
        return torch.from_numpy(rows), torch.from_numpy(table["whole"].to_numpy()), torch.from_numpy(city)

    return work


def images(folder):
    """Decodes and augments each file of the folder four times."""
    from torchvision import datasets, transforms

    augment = transforms.Compose([
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])
    files = sorted(glob.glob(os.path.join(folder, "*", "*.jpg")))

    def work(_):
        for _ in range(4):
            for file in files:
                augment(datasets.folder.pil_loader(file))

    return work


torch.set_num_threads(1)
work = {"parquet": parquet, "images": images}[sys.argv[1]](sys.argv[2])
for line in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    work(int(line))
    print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)
