//! Tests of map-style data sets, which return single examples, with any number of workers. The
//! batches must not depend on the number of workers. An error must contain the index of the
//! example. Worker threads must end with the epoch.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use amp_core::{
    Trainer, TrainerConfig,
    callback::{Mode, ModelCheckpoint},
    data::{DataLoader, Loading, MapDataset, Placement, SharedDataset},
    nn,
    precision::Policy,
    prelude::*,
    random::{Draws, Rng},
};
use rstest::rstest;
use tempfile::tempdir;

use crate::support::{bits::values, device, message, seeded};

/// How the data set fails at the example that is chosen to fail, if at all.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    Error,
    Panic,
}

/// A data set of numbers with random noise. Some examples take longer to read than the next ones,
/// so that workers finish in another order.
struct Numbers {
    count: i64,
    noise: f64,
    fault: (i64, Fault),
    read: Arc<AtomicI64>,
}

impl Numbers {
    fn of(count: i64) -> Self {
        Self { count, noise: 1.0, fault: (-1, Fault::None), read: Arc::default() }
    }
}

impl MapDataset for Numbers {
    type Example = Batch;

    fn len(&self) -> i64 {
        self.count
    }

    fn get(&self, index: i64, rng: &mut Rng) -> Result<Batch> {
        self.read.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_micros(300 * (3 - index % 4).cast_unsigned()));
        match self.fault {
            (at, fault) if at != index || fault == Fault::None => {}
            (_, Fault::Panic) => panic!("a bug"),
            _ => return Err(Error::config("the record is unreadable")),
        }
        let mut seen = [index as f64; 4];
        if self.noise > 0.0 {
            seen.iter_mut().for_each(|seen| *seen += self.noise * rng.normal());
        }
        Ok(Batch {
            input: Tensor::f_from_slice(&seen)?,
            target: Tensor::f_from_slice(&[index as f64])?,
        })
    }
}

fn loading(num_workers: usize, prefetch: Option<usize>) -> Loading {
    Loading { placement: Placement::Host, num_workers, prefetch, ..Loading::default() }
}

fn loader(set: impl Into<SharedDataset>, size: i64, loading: Loading) -> Result<DataLoader> {
    let policy = Policy::new(Precision::F32True, device());
    Ok(DataLoader::new(&set.into(), size, loading, policy)?.drawing(5))
}

/// Returns inputs and targets of the epoch's batches, beginning with batch `first` (counted from
/// 0).
fn batches(loader: &DataLoader, epoch: u64, first: i64) -> Result<Vec<(Vec<f64>, Vec<f64>)>> {
    let read = loader.epoch(epoch, first)?.map(|batch| {
        let batch = Batch::from_any(&batch?)?;
        Ok((values(&batch.input), values(&batch.target)))
    });
    read.collect()
}

/// The batches do not depend on the number of workers, in order and shuffled, from the start of an
/// epoch and from its middle.
#[rstest]
fn batches_do_not_depend_on_the_workers(
    #[values(1, 2, 7)] workers: usize,
    #[values(None, Some(1), Some(20))] prefetch: Option<usize>,
    #[values(None, Some(3))] shuffle: Option<u64>,
) -> Result<()> {
    let order = |loader: DataLoader| match shuffle {
        Some(seed) => loader.shuffled(seed),
        None => loader,
    };
    let in_loop = order(loader(Numbers::of(29).shared(), 3, loading(0, Some(0)))?);
    let by_workers = order(loader(Numbers::of(29).shared(), 3, loading(workers, prefetch))?);
    for epoch in 0..2 {
        let expected = batches(&in_loop, epoch, 0)?;
        assert_eq!(expected.len(), 10);
        assert_eq!(batches(&by_workers, epoch, 0)?, expected);
        assert_eq!(batches(&by_workers, epoch, 4)?, expected[4..]);
    }
    assert_ne!(batches(&by_workers, 0, 0)?, batches(&by_workers, 1, 0)?);
    Ok(())
}

/// An example's random numbers depend only on the seed, the epoch and the index of the example.
#[test]
fn an_examples_draws_depend_on_its_number_alone() -> Result<()> {
    for size in [1, 4, 13] {
        let loader = loader(Numbers::of(13).shared(), size, loading(2, None))?.shuffled(1);
        for (inputs, targets) in batches(&loader, 6, 0)? {
            for (input, target) in inputs.chunks(4).zip(targets) {
                let mut rng = Draws::new(5, 6).rng(target as i64);
                let expected: Vec<f64> =
                    (0..4).map(|_| f64::from((target + rng.normal()) as f32)).collect();
                assert_eq!(input, expected, "example {target} in batches of {size}");
            }
        }
    }
    Ok(())
}

/// If reading an example fails, the iterator of the epoch returns the batches before this example,
/// then an error with the index of the example, and then it ends. The next epoch can be read.
#[rstest]
#[case(Fault::Error, "example 7 of the data set: the record is unreadable")]
#[case(Fault::Panic, "example 7 of the data set: the dataset panicked: a bug")]
fn a_workers_failure_reaches_the_loop(
    #[case] fault: Fault,
    #[case] says: &str,
    #[values(0, 1, 2, 7)] workers: usize,
) -> Result<()> {
    let set = Numbers { fault: (7, fault), ..Numbers::of(40) };
    let loader = loader(set.shared(), 2, loading(workers, None))?;
    for _ in 0..2 {
        let mut epoch = loader.epoch(0, 0)?;
        for expected in [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]] {
            let batch = Batch::from_any(&epoch.next().expect("a batch")?)?;
            assert_eq!(values(&batch.target), expected);
        }
        let error = epoch.next().expect("a fourth batch or its error");
        assert!(matches!(error, Err(Error::Data(_))), "the error is `Error::Data`");
        assert_eq!(message(error), says);
        assert!(epoch.next().is_none() && epoch.next().is_none());
    }
    assert_eq!(batches(&loader, 0, 4)?.len(), 16);
    Ok(())
}

/// Workers do not run too far ahead of the training loop. At any time, at most the requested number
/// of batches have been started and not yet used.
#[rstest]
#[case(2, Some(3), 3)]
#[case(3, None, 6)]
#[case(4, Some(1), 1)]
fn workers_are_not_too_far_ahead(
    #[case] workers: usize,
    #[case] prefetch: Option<usize>,
    #[case] most: i64,
) -> Result<()> {
    // The loader checks whether the data set uses random numbers. If another test used random
    // numbers at the same time, the loader would read the first batch more than twice. `seeded`
    // prevents this: until `_section` is dropped, other tests must wait before they use random
    // numbers.
    let _section = seeded(1);
    let set = Numbers::of(200);
    let read = set.read.clone();
    let loader = loader(set.shared(), 2, loading(workers, prefetch))?;
    let mut furthest = 0;
    // On CUDA, the thread that copies batches to the device holds two finished batches and works on
    // a third. These come in addition to the batches of the workers.
    let copying = if device().is_cuda() { 3 } else { 0 };
    for (taken, batch) in (1..).zip(loader.epoch(0, 0)?) {
        batch?;
        std::thread::sleep(Duration::from_millis(2));
        furthest = furthest.max(read.load(Ordering::SeqCst) - 2 * taken);
    }
    // To check whether the data set uses libtorch's random generator, the loader may read the first
    // batch twice.
    assert!(furthest <= 2 * (most + copying), "the workers were at most {furthest} examples ahead");
    assert!(furthest >= most, "the workers were at most {furthest} examples ahead");
    Ok(())
}

/// If an epoch is dropped in the middle, its worker threads end and release the data set.
#[rstest]
fn dropping_an_epoch_ends_its_workers(
    #[values(1, 2, 7)] workers: usize,
    #[values(0, 1, 5)] taken: usize,
) -> Result<()> {
    let set = Numbers::of(4000);
    let read = set.read.clone();
    let loader = loader(set.shared(), 2, loading(workers, None))?;
    for _ in 0..3 {
        let mut epoch = loader.epoch(0, 0)?;
        for _ in 0..taken {
            epoch.next().expect("a batch")?;
        }
    }
    let asked = read.load(Ordering::SeqCst);
    assert!(asked < 2000, "the workers continued and read {asked} examples");
    drop(loader);
    assert_eq!(Arc::strong_count(&read), 1, "a thread still holds the set");
    assert_eq!(read.load(Ordering::SeqCst), asked);
    Ok(())
}

/// The workers do not deadlock. The test runs many short epochs, each of which ends at another
/// point.
#[test]
fn workers_never_wait_for_each_other_for_ever() -> Result<()> {
    let set = Numbers { noise: 0.0, ..Numbers::of(6) }.shared();
    for round in 0..60 {
        let loader = loader(set.clone(), 1, loading(1 + round % 7, Some(1 + round % 3)))?;
        let taken = loader.epoch(0, 0)?.take(round % 8).count();
        assert_eq!(taken, (round % 8).min(6));
    }
    Ok(())
}

#[rstest]
#[case(
    loading(4, Some(0)),
    "prefetch is 0, so the 4 workers have no batch to make: leave prefetch out"
)]
#[case(
    Loading { placement: Placement::Device, ..loading(4, None) },
    "num_workers 4: a set on the device is not read by workers: choose `placement` `auto` or `host`"
)]
fn invalid_loading_options_are_refused(#[case] loading: Loading, #[case] says: &str) {
    let text = message(loader(Numbers::of(4).shared(), 2, loading));
    assert!(text.starts_with(says), "{text}");
}

/// A data set that is stored on the device is read only once. A data set that uses random numbers
/// must be read in every epoch, because its examples change from epoch to epoch. Storing it on the
/// device is therefore refused.
#[test]
fn a_set_that_draws_is_refused_on_the_device() -> Result<()> {
    let on_device = Loading { placement: Placement::Device, ..Loading::default() };
    let text = message(loader(Numbers::of(4).shared(), 2, on_device));
    assert!(
        text.starts_with("`placement = device` copies the dataset once, but this dataset draws"),
        "{text}"
    );
    let quiet = || Numbers { noise: 0.0, ..Numbers::of(4) }.shared();
    let expected = batches(&loader(quiet(), 2, loading(0, None))?, 0, 0)?;
    assert_eq!(batches(&loader(quiet(), 2, on_device)?, 0, 0)?, expected);
    Ok(())
}

/// `num_workers` has no effect on data sets that are in memory or that gather whole batches.
#[test]
fn workers_do_not_affect_sets_of_whole_batches() -> Result<()> {
    let set = || crate::support::data::numbered(10);
    let expected = batches(&loader(set()?, 3, Loading::default())?.shuffled(2), 1, 0)?;
    let auto = Loading { placement: Placement::Auto, ..loading(3, None) };
    assert!(loader(set()?, 3, auto)?.is_resident());
    for loading in [auto, loading(3, None)] {
        assert_eq!(batches(&loader(set()?, 3, loading)?.shuffled(2), 1, 0)?, expected);
    }
    Ok(())
}

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 1e-4)]
struct Net {
    #[layer(sequential(linear(4, 8), relu, dropout(0.5), linear(8, 1)))]
    body: Sequential,
}

fn config(steps: Option<u64>) -> TrainerConfig {
    TrainerConfig {
        max_epochs: 2,
        max_steps: steps,
        seed: 5,
        ..TrainerConfig::new(Precision::F32True, device())
    }
}

fn data(workers: usize) -> DataModule {
    let (train, val) = (Numbers::of(24).shared(), Numbers::of(8).shared());
    DataModule { loading: loading(workers, None), ..DataModule::new("numbers", train, val, 4) }
}

fn weights(net: &Net) -> Vec<f64> {
    nn::parameters(net).iter().flat_map(|own| values(&own.tensor)).collect()
}

/// A run that is resumed in the middle of an epoch ends with the same bits as a run without
/// interruption. This holds for any numbers of workers, although dropout also uses random numbers
/// during the epoch.
#[rstest]
fn a_resumed_run_equals_an_uninterrupted_one(
    #[values(4, 6, 9)] steps: u64,
    #[values((0, 7), (2, 0), (7, 2))] workers: (usize, usize),
) -> Result<()> {
    let straight = {
        let _section = seeded(1);
        let mut net = Net::builder().build()?;
        Trainer::new(config(None)).fit(&mut net, &data(1))?;
        weights(&net)
    };
    let folder = tempdir().expect("a temporary folder");
    {
        let _section = seeded(1);
        let mut net = Net::builder().build()?;
        let saves = ModelCheckpoint::new(folder.path(), "val_loss", Mode::Min)?.save_last(true);
        Trainer::new(config(Some(steps))).callback(saves).fit(&mut net, &data(workers.0))?;
        assert_ne!(weights(&net), straight);
    }
    let _section = seeded(99);
    let mut net = Net::builder().build()?;
    let last = folder.path().join("last.safetensors");
    Trainer::new(config(None)).resume_from(last).fit(&mut net, &data(workers.1))?;
    assert_eq!(weights(&net), straight);
    Ok(())
}
