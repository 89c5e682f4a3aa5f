//! Measures three ways of loading the batches of a shuffled epoch of 64 MiB. In the first, a batch
//! is selected from a data set on the device. In the second, a thread that runs ahead of the loop
//! gathers a batch on the host. In the third, the loop itself gathers a batch on the host. Each
//! batch is multiplied by a matrix, as in a training step, so that loading can overlap with
//! computation.
//!
//! Run the benchmark with `cargo bench -p tests --bench loader` on the CPU, and with
//! `AMP_DEVICE=cuda` on a GPU. Compare the three times.

use amp_core::{
    Result,
    data::{Batch, DataLoader, Loading, Placement, SharedDataset},
    hardware::parse_device,
    precision::{Policy, Precision},
    tch::{Cuda, Device, Kind, Tensor},
};
use criterion::{Criterion, Throughput};

const EXAMPLES: i64 = 16384;
const FEATURES: i64 = 1024;
const BATCH: i64 = 256;

/// The three ways of loading. Each has a name, the placement of the data, and the number of batches
/// to load ahead.
const WAYS: [(&str, Placement, Option<usize>); 3] = [
    ("on the device", Placement::Device, None),
    ("host, 2 ahead", Placement::Host, Some(2)),
    ("host, in the loop", Placement::Host, Some(0)),
];

/// Reads an epoch and waits for the device.
fn epoch(loader: &DataLoader, number: u64, weight: &Tensor) -> Result<()> {
    for batch in loader.epoch(number, 0)? {
        let _ = batch?.required("input")?.f_mm(weight)?;
    }
    if let Device::Cuda(index) = weight.device() {
        Cuda::synchronize(index as i64);
    }
    Ok(())
}

fn main() -> Result<()> {
    let device = std::env::var("AMP_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    let device = parse_device(&device)?;
    let x = Tensor::f_randn([EXAMPLES, FEATURES], (Kind::Float, Device::Cpu))?;
    let y = Tensor::f_randint(10, [EXAMPLES], (Kind::Int64, Device::Cpu))?;
    let data: SharedDataset = Batch::new(x, y)?.into();
    let weight = Tensor::f_randn([FEATURES, 256], (Kind::Float, device))?;
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let mut group = criterion.benchmark_group("loading an epoch");
    group.throughput(Throughput::Elements(EXAMPLES.cast_unsigned()));
    for (name, placement, prefetch) in WAYS {
        let loading = Loading { placement, prefetch, ..Loading::default() };
        let policy = Policy::new(Precision::F32True, device);
        let loader = DataLoader::new(&data, BATCH, loading, policy)?.shuffled(1);
        let mut number = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                number += 1;
                epoch(&loader, number, &weight).expect("an epoch")
            });
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
