//! Tests of the measured peak memory on the CPU, which must be exact to the byte.

use std::thread;

use amp_core::{
    Result,
    data::{Batch, BatchType, DataLoader, Loading, Placement, SharedDataset},
    memory::{MemoryMeter, parse_bytes},
    precision::{Policy, Precision},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{device, message, needs_cuda};

fn bytes(count: i64) -> Tensor {
    Tensor::empty([count], (Kind::Uint8, Device::Cpu))
}

/// The peak counts all tensors that exist at the same time. A tensor that is as large as an already
/// freed one does not raise the peak. Tensors that existed before the measurement are not counted,
/// even if they are freed during the measurement.
#[test]
fn the_peak_is_the_most_that_lived_at_once() -> Result<()> {
    let before = bytes(10_000);
    let meter = MemoryMeter::start(Device::Cpu)?;
    assert_eq!(meter.read()?.peak_allocated, 0);
    let first = bytes(4096);
    assert_eq!(meter.read()?.peak_allocated, 4096);
    drop(bytes(1_000_000));
    assert_eq!(meter.read()?.peak_allocated, 4096 + 1_000_000);
    drop(first);
    let _second = bytes(1_000_000);
    assert_eq!(meter.read()?.peak_allocated, 4096 + 1_000_000, "freed memory is reused");
    drop(before);
    assert_eq!(meter.read()?.peak_reserved, None, "the CPU has no caching allocator");
    Ok(())
}

/// The number of bytes depends on the dtype: f16 needs half the memory of f32.
#[test]
fn elements_count_in_their_dtypes_size() -> Result<()> {
    for (kind, size) in [(Kind::Half, 2), (Kind::Float, 4), (Kind::Double, 8)] {
        let meter = MemoryMeter::start(Device::Cpu)?;
        let _tensor = Tensor::zeros([1000], (kind, Device::Cpu));
        assert_eq!(meter.read()?.peak_allocated, 1000 * size);
    }
    Ok(())
}

/// cuBLAS allocates workspaces when a thread computes its first matrix products. The memory meter
/// does not count them, so it measures the same peak for the first step of a thread as for later
/// steps.
#[test]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn the_workspaces_of_cublas_do_not_count() -> Result<()> {
    needs_cuda();
    let step = || -> Result<u64> {
        let meter = MemoryMeter::start(device())?;
        for kind in [Kind::Float, Kind::Half, Kind::BFloat16] {
            let weight = Tensor::ones([64, 64], (kind, device())).set_requires_grad(true);
            weight.matmul(&weight).sum(kind).backward();
        }
        Ok(meter.read()?.peak_allocated)
    };
    let first = thread::spawn(step).join().expect("the thread does not panic")?;
    assert_eq!(first, step()?);
    assert!(first < 1 << 20, "{first}");
    Ok(())
}

/// The data loader copies batches to the device ahead of their use, on a second stream. The memory
/// meter does not count batches that were freed, even if the device has not yet finished the work
/// that uses them.
#[test]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn freed_batches_do_not_count() -> Result<()> {
    needs_cuda();
    let x = Tensor::ones([40, 100], (Kind::Float, Device::Cpu));
    let data: SharedDataset = Batch::new(x.shallow_clone(), x)?.into();
    let loading = Loading { placement: Placement::Host, prefetch: Some(2), ..Loading::default() };
    let policy = Policy::new(Precision::F32True, device());
    let factor = Tensor::ones([4096, 4096], (Kind::Float, device()));
    let meter = MemoryMeter::start(device())?;
    for batch in DataLoader::new(&data, 10, loading, policy)?.epoch(0, 0)? {
        let batch = Batch::from_any(&batch?)?;
        (0..20).for_each(|_| drop(factor.matmul(&factor)));
        drop(batch.input.sum(Kind::Float));
    }
    assert_eq!(meter.allocated()?, 0);
    Ok(())
}

/// Two consecutive measurements are independent. A measurement does not count the tensors of
/// another thread.
#[test]
fn a_measurement_counts_its_own_thread() -> Result<()> {
    {
        let meter = MemoryMeter::start(Device::Cpu)?;
        let _tensor = bytes(5000);
        assert_eq!(meter.read()?.peak_allocated, 5000);
    }
    let meter = MemoryMeter::start(Device::Cpu)?;
    std::thread::spawn(|| drop(bytes(9000))).join().expect("a thread that only allocates");
    assert_eq!(meter.read()?.peak_allocated, 0);
    Ok(())
}

#[rstest]
#[case("1048576", 1 << 20)]
#[case("12B", 12)]
#[case("500MB", 500_000_000)]
#[case("2GiB", 2 << 30)]
#[case("1.5 KiB", 1536)]
#[case("3tb", 3_000_000_000_000)]
fn sizes_are_read(#[case] text: &str, #[case] bytes: u64) -> Result<()> {
    assert_eq!(parse_bytes(text)?, bytes);
    Ok(())
}

#[rstest]
fn invalid_sizes_are_refused(
    #[values("", "0", "-1", "GiB", "2 parsecs", "1.2.3MB", "NaN", "0.4")] text: &str,
) {
    let expected = format!("`{text}` is not a size in bytes: write it as 500MB, 2GiB or 1048576");
    assert_eq!(message(parse_bytes(text)), expected);
}
