//! Tests of data loading on a separate thread: user-defined data sets, errors in reading an
//! example, the end of the thread, and copies to CUDA that overlap with the computation.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use amp_core::{
    Error, Result, TrainerConfig,
    data::{
        AnyBatch, Batch, BatchType, DataLoader, DataModule, Dataset, Loading, Placement,
        SharedDataset,
    },
    memory::MemoryMeter,
    optim::{AdamW, OptimizerConfig},
    precision::{Policy, Precision},
    random::Draws,
    record::RunRecord,
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    data::numbered,
    device, message,
    model::{Model, constant, digits, fit, linear},
    seeded,
};

fn policy() -> Policy {
    Policy::new(Precision::F32True, device())
}

fn ahead(batches: usize) -> Loading {
    Loading { placement: Placement::Host, prefetch: Some(batches), ..Loading::default() }
}

/// A data set of records in a file. Each record has eight little-endian f32 numbers and one byte
/// for the class.
struct Records {
    file: File,
    count: i64,
}

const WIDTH: usize = 8;
const RECORD: usize = 4 * WIDTH + 1;

impl Dataset for Records {
    type Batch = Batch;

    fn len(&self) -> i64 {
        self.count
    }

    fn gather(&mut self, indices: &[i64]) -> Result<Batch> {
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for index in indices {
            let mut record = [0; RECORD];
            self.file
                .seek(SeekFrom::Start(*index as u64 * RECORD as u64))
                .and_then(|_| self.file.read_exact(&mut record))
                .map_err(|error| Error::io("records", error))?;
            let words = record[..4 * WIDTH].chunks(4);
            x.extend(words.map(|w| f32::from_le_bytes(w.try_into().expect("four bytes"))));
            y.push(i64::from(record[4 * WIDTH]));
        }
        let x = Tensor::f_from_slice(&x)?.f_reshape([-1, WIDTH as i64])?;
        Batch::new(x, Tensor::f_from_slice(&y)?)
    }
}

/// A user-defined data set that reads its batches from disk gives the same batches as the same data
/// in memory, with every placement.
#[rstest]
fn a_dataset_from_disk_equals_one_in_memory(
    #[values(Placement::Auto, Placement::Device, Placement::Host)] placement: Placement,
) -> Result<()> {
    let mut file = tempfile::tempfile().expect("a file");
    let x: Vec<f32> = (0..50 * WIDTH).map(|at| at as f32 / 3.0).collect();
    let y: Vec<i64> = (0..50).map(|at| at % 7).collect();
    for (x, y) in x.chunks(WIDTH).zip(&y) {
        let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).chain([*y as u8]).collect();
        file.write_all(&bytes).expect("room on the disk");
    }
    let memory = Batch::new(Tensor::from_slice(&x).reshape([50, -1]), Tensor::from_slice(&y))?;
    let load = |data: SharedDataset| -> Result<Vec<Batch>> {
        let loading = Loading { placement, ..Loading::default() };
        let loader = DataLoader::new(&data, 8, loading, policy())?.shuffled(1);
        loader.epoch(0, 0)?.map(|batch| Batch::from_any(&batch?)).collect()
    };
    let (disk, memory) = (load(Records { file, count: 50 }.into())?, load(memory.into())?);
    assert_eq!(disk.len(), memory.len());
    for (disk, memory) in disk.iter().zip(&memory) {
        assert!(disk.input.equal(&memory.input) && disk.target.equal(&memory.target));
    }
    Ok(())
}

/// A data set with random noise. The noise comes from a generator that is seeded for each example
/// (`seeds`), or from libtorch's generator.
struct Noisy {
    seeds: bool,
}

impl Dataset for Noisy {
    type Batch = Batch;

    fn len(&self) -> i64 {
        100
    }

    fn gather(&mut self, indices: &[i64]) -> Result<Batch> {
        let x = Tensor::f_from_slice(indices)?.f_to_kind(Kind::Float)?.f_unsqueeze(1)?;
        let noise = x.f_rand_like()?;
        Batch::new(x + noise, Tensor::f_from_slice(indices)?)
    }

    fn gather_drawing(&mut self, indices: &[i64], draws: Draws) -> Result<Batch> {
        if !self.seeds {
            return self.gather(indices);
        }
        let noise: Vec<f64> = indices.iter().map(|index| draws.rng(*index).normal()).collect();
        Batch::new(Tensor::f_from_slice(&noise)?.f_unsqueeze(1)?, Tensor::f_from_slice(indices)?)
    }
}

/// Storing a data set with random numbers on the device is refused, wherever the random numbers
/// come from. A single copy would have the same random numbers in every epoch.
#[rstest]
fn a_dataset_with_random_numbers_is_refused_on_the_device(
    #[values(false, true)] seeds: bool,
) -> Result<()> {
    let load = |placement| {
        let loading = Loading { placement, ..Loading::default() };
        DataLoader::new(&Noisy { seeds }.into(), 8, loading, policy()).map(drop)
    };
    let text = message(load(Placement::Device));
    let says = "`placement = device` copies the dataset once, but this dataset draws";
    assert!(text.starts_with(says), "{text}");
    load(Placement::Auto)
}

/// What happens when the data set reads the faulty example.
#[derive(Clone, Copy)]
enum Fault {
    Error,
    Panic,
    TooFew,
}

/// A data set of numbered examples, one of which is faulty. It counts the gathered batches.
struct Faulty {
    inner: Batch,
    at: i64,
    fault: Fault,
    gathered: Arc<AtomicI64>,
}

impl Dataset for Faulty {
    type Batch = AnyBatch;

    fn len(&self) -> i64 {
        self.inner.len()
    }

    fn gather(&mut self, indices: &[i64]) -> Result<AnyBatch> {
        self.gathered.fetch_add(1, Ordering::SeqCst);
        match self.fault {
            _ if !indices.contains(&self.at) => self.inner.gather(indices),
            Fault::Error => Err(Error::config("record 5 is unreadable")),
            Fault::Panic => panic!("a bug in the dataset"),
            Fault::TooFew => self.inner.gather(&indices[1..]),
        }
    }
}

/// Returns the data set, and the count of gathered batches.
fn faulty(count: i64, at: i64, fault: Fault) -> Result<(SharedDataset, Arc<AtomicI64>)> {
    let gathered = Arc::new(AtomicI64::new(0));
    let data = Faulty { inner: numbered(count)?, at, fault, gathered: gathered.clone() };
    Ok((data.into(), gathered))
}

/// If reading an example fails, the iterator of the epoch returns the batches before this example,
/// then the error, and then it ends. The next epoch can be read. This holds with and without a
/// loading thread.
#[rstest]
#[case::error(Fault::Error, "record 5 is unreadable")]
#[case::panic(Fault::Panic, "the dataset panicked: a bug in the dataset")]
#[case::too_few(Fault::TooFew, "the dataset gave 1 examples for 2 indices")]
fn a_datasets_failure_reaches_the_loop(
    #[case] fault: Fault,
    #[case] says: &str,
    #[values(0, 2)] batches: usize,
) -> Result<()> {
    let (data, _) = faulty(12, 5, fault)?;
    let loader = DataLoader::new(&data, 2, ahead(batches), policy())?;
    for _ in 0..2 {
        let mut epoch = loader.epoch(0, 0)?;
        for expected in [[0, 1], [2, 3]] {
            let batch = Batch::from_any(&epoch.next().expect("a batch")?)?;
            assert_eq!(Vec::<i64>::try_from(&batch.target)?, expected);
        }
        let error = epoch.next().expect("a third batch or its error");
        assert!(matches!(error, Err(Error::Data(_))), "the error is `Error::Data`");
        let text = message(error);
        assert!(text.starts_with(says), "{text}");
        assert!(epoch.next().is_none() && epoch.next().is_none());
    }
    let rest: Result<Vec<AnyBatch>> = loader.epoch(0, 3)?.collect();
    assert_eq!(rest?.len(), 3);
    Ok(())
}

/// The thread gathers at most the allowed number of batches ahead.
#[rstest]
#[case(1)]
#[case(3)]
fn the_thread_gathers_at_most_the_requested_batches(#[case] batches: i64) -> Result<()> {
    // `_section` keeps other tests from drawing random numbers. The loader would attribute such
    // numbers to the data set and read the first batch again.
    let _section = seeded(1);
    let (data, gathered) = faulty(64, -1, Fault::Error)?;
    let loader = DataLoader::new(&data, 1, ahead(batches as usize), policy())?;
    for (taken, batch) in (1..).zip(loader.epoch(0, 0)?) {
        batch?;
        std::thread::sleep(std::time::Duration::from_millis(1));
        let ahead = gathered.load(Ordering::SeqCst) - taken;
        assert!(ahead <= batches, "{ahead} batches ahead of batch {taken}");
    }
    Ok(())
}

/// If an epoch is dropped in the middle, its loading thread ends and releases the data set.
#[rstest]
fn dropping_an_epoch_ends_its_thread(#[values(0, 1, 5)] taken: usize) -> Result<()> {
    let (data, gathered) = faulty(1000, -1, Fault::Error)?;
    let loader = DataLoader::new(&data, 1, ahead(4), policy())?;
    let mut epoch = loader.epoch(0, 0)?;
    for _ in 0..taken {
        epoch.next().expect("a batch")?;
    }
    drop(epoch);
    let asked = gathered.load(Ordering::SeqCst);
    assert!(asked < 1000, "the loading thread continued to the end of the epoch");
    drop((loader, data));
    assert_eq!(Arc::strong_count(&gathered), 1, "another handle of the dataset exists");
    assert_eq!(gathered.load(Ordering::SeqCst), asked);
    Ok(())
}

/// The meter counts the memory of the batches that the thread gathers. The peak is at least one
/// batch. It is at most four: the current batch, the two that are loaded ahead, and one that waits
/// for room in the queue.
#[test]
fn the_meter_counts_the_threads_batches() -> Result<()> {
    let data: SharedDataset = constant(64, 1 << 14, 1.0)?.into();
    let meter = MemoryMeter::start(Device::Cpu)?;
    let on_cpu = Policy::new(Precision::F32True, Device::Cpu);
    DataLoader::new(&data, 8, ahead(2), on_cpu)?.epoch(0, 0)?.try_for_each(|b| b.map(drop))?;
    let (batch, peak) = (1 << 20, meter.read()?.peak_allocated);
    assert!((batch..4 * batch + 4096).contains(&peak), "{peak}");
    Ok(())
}

fn train(data: &DataModule) -> Result<RunRecord> {
    let _generator = seeded(5);
    let mut config = TrainerConfig::new(Precision::F32True, device());
    (config.max_epochs, config.seed) = (2, 7);
    let mut model = Model::regression(linear(64, 64)?, |_| OptimizerConfig::new(AdamW::default()));
    fit(&config, &mut model, data).1
}

/// Training gives the same bits for each way of loading the data. With `drop_last`, each epoch has
/// one step fewer than without it.
#[test]
fn training_does_not_depend_on_loading() -> Result<()> {
    let all = digits(100)?;
    let x = || all.input.copy();
    let mut data = DataModule::new("digits", Batch::new(x(), x())?, Batch::new(x(), x())?, 16);
    let expected = train(&data)?;
    for prefetch in [0, 3] {
        data.loading = ahead(prefetch);
        let seen = train(&data)?;
        assert_eq!(seen.last("train_loss"), expected.last("train_loss"));
        assert_eq!(seen.last("val_loss"), expected.last("val_loss"));
        assert_eq!(seen.end.global_step, 14);
    }
    data.loading = Loading { drop_last: true, ..Loading::default() };
    let record = train(&data)?;
    assert_eq!((record.end.global_step, record.start.batches_per_epoch), (12, 6));
    Ok(())
}

/// Data is copied to the device while the device computes. The test computes the mean of each batch
/// and drops the batch before the device has computed the mean. The mean is wrong if the
/// computation does not wait for the copy, or if the next copy overwrites the batch too early. If
/// `busy` is true, matrix products are queued before each mean, so that copies run ahead of the
/// computation. Otherwise the computation waits for copies.
#[rstest]
fn copies_arrive_before_they_are_used(#[values(false, true)] busy: bool) -> Result<()> {
    let cuda = device().is_cuda();
    let (width, rounds) = if cuda { (1 << 20, 4) } else { (1 << 10, 1) };
    let rows = 64;
    let number = Tensor::arange(rows, (Kind::Float, Device::Cpu)).reshape([rows, 1]);
    let x = number.expand([rows, width], false).contiguous();
    let data = Batch::new(x, Tensor::arange(rows, (Kind::Int64, Device::Cpu)))?.into();
    let loader = DataLoader::new(&data, 4, ahead(3), policy())?.shuffled(1);
    // These matrix products take longer than the thread needs to load a batch. The mean of a batch
    // is therefore still queued when the batch is dropped.
    let products = if busy { 8 } else { 0 };
    let side = if cuda { 4096 } else { 8 };
    let work = Tensor::ones([side, side], (Kind::Float, device()));
    let mut sums = Vec::new();
    for epoch in 0..rounds {
        for batch in loader.epoch(epoch, 0)? {
            let batch = Batch::from_any(&batch?)?;
            for _ in 0..products {
                let _ = work.f_mm(&work)?;
            }
            let input = batch.input.f_mean_dim([1].as_slice(), false, Kind::Double)?;
            sums.push((input, batch.target.f_to_kind(Kind::Double)?));
        }
    }
    assert_eq!(sums.len() as u64, rounds * 16);
    for (at, (input, target)) in sums.iter().enumerate() {
        assert!(input.equal(target), "batch {at}: {input} is not {target}");
    }
    Ok(())
}
