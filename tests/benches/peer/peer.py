"""Does the work of two benchmarks in Python: `peer.py tables FILE` or `peer.py images FOLDER`.

For each line on standard input, the program does the work once, and answers with wall-clock and CPU seconds.
"""

import glob
import os
import sys
import time

import torch


def tables(path):
    """Returns a function that answers requests: `write FILE` writes the table, `PART THREADS FILE` reads it into the
    tensors that the Rust benchmark makes, and `sum PART THREADS FILE` also returns two sums over these tensors."""
    import numpy
    import pyarrow
    import pyarrow.compute
    import pyarrow.csv
    import pyarrow.parquet

    columns = {"full": [*"abcdefgh", "whole", "city"], "gaps": ["level", "count", "color"]}
    texts = {"city": "full", "color": "gaps"}
    first = pyarrow.parquet.read_table(path)
    known = {name: sorted(set(first[name].drop_null().to_pylist())) for name in texts}

    def table(part, threads, file):
        pyarrow.set_cpu_count(threads)
        names = columns[part]
        if not file.endswith(".csv"):
            return pyarrow.parquet.read_table(file, columns=names, use_threads=threads > 1, read_dictionary=[*texts])
        text = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
        kinds = {name: text if name in texts else None for name in names}
        options = pyarrow.csv.ConvertOptions(
            include_columns=names, column_types={name: kind for name, kind in kinds.items() if kind}, strings_can_be_null=True
        )
        return pyarrow.csv.read_csv(file, pyarrow.csv.ReadOptions(use_threads=threads > 1), convert_options=options)

    def ids(column, name):
        """Returns the id of each row: the index of its name among the sorted names. A missing name has the next id."""
        whole = column.unify_dictionaries().combine_chunks()
        numbers = {name: number for number, name in enumerate(known[name])}
        order = numpy.array([numbers[name] for name in whole.dictionary.to_pylist()] + [len(numbers)])
        indices = whole.indices
        if indices.null_count:
            indices = indices.fill_null(len(order) - 1)
        return torch.from_numpy(order[indices.to_numpy()])

    def tensors(part, threads, file):
        read = table(part, threads, file)
        if part == "gaps":
            level = read["level"].to_numpy().astype(numpy.float32)
            level[numpy.isnan(level)] = 0
            count = pyarrow.compute.fill_null(read["count"], -100).to_numpy()
            return torch.from_numpy(level), torch.from_numpy(count), ids(read["color"], "color")
        numbers = columns[part][:8]
        rows = numpy.empty((read.num_rows, len(numbers)), dtype=numpy.float32)
        for at, name in enumerate(numbers):
            rows[:, at] = read[name].to_numpy()
        return torch.from_numpy(rows), torch.from_numpy(read["whole"].to_numpy()), ids(read["city"], "city")

    def work(request):
        if request[0] == "write":
            pyarrow.parquet.write_table(first, request[1], compression="zstd", row_group_size=65536)
        elif request[0] == "sum":
            sums = [0.0, 0.0]
            for tensor in tensors(request[1], int(request[2]), request[3]):
                rows = tensor.double().view(len(tensor), -1)
                weights = torch.arange(len(rows), dtype=torch.float64).remainder(1009).view(-1, 1)
                sums = [sums[0] + rows.sum().item(), sums[1] + (rows * weights).sum().item()]
            return sums
        else:
            tensors(request[0], int(request[1]), request[2])

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
work = {"tables": tables, "images": images}[sys.argv[1]](sys.argv[2])
for line in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    answer = work(line.split())
    print(*answer or (time.perf_counter() - wall, time.process_time() - cpu), flush=True)
