//! Tests of data sets that use random numbers. The random numbers must depend neither on how the
//! data is loaded nor on whether the run was resumed.

use std::thread;

use amp_core::{
    Trainer, TrainerConfig,
    callback::{Mode, ModelCheckpoint},
    data::{AnyBatch, DataLoader, Dataset, Loading, Placement, SharedDataset},
    nn,
    precision::Policy,
    prelude::*,
    random::Draws,
};
use rstest::rstest;
use tempfile::tempdir;

use crate::support::{bits::values, device, seeded};

/// A data set that adds random noise to its examples.
#[derive(Clone, Copy)]
enum Noisy {
    /// Noise from libtorch's generator, which the model's dropout uses too.
    OfLibtorch,
    /// Noise from a separate generator for each example.
    OfItsOwn,
    /// Adds no noise and uses no random numbers.
    Silent,
}

impl Dataset for Noisy {
    type Batch = Batch;

    fn len(&self) -> i64 {
        24
    }

    fn gather(&mut self, indices: &[i64]) -> Result<Batch> {
        self.gather_drawing(indices, Draws::new(0, 0))
    }

    fn gather_drawing(&mut self, indices: &[i64], draws: Draws) -> Result<Batch> {
        let count = indices.len() as i64;
        let clean = Tensor::f_from_slice(indices)?.f_to_kind(Kind::Float)?.f_view([-1, 1])? / 24.0;
        let noise = match self {
            Self::OfLibtorch => Tensor::f_randn([count, 1], (Kind::Float, Device::Cpu))?,
            Self::OfItsOwn => {
                let draw = |index: &i64| fastrand::Rng::with_seed(draws.seed(*index)).f32();
                let drawn: Vec<f32> = indices.iter().map(draw).collect();
                Tensor::f_from_slice(&drawn)?.f_view([-1, 1])?
            }
            Self::Silent => Tensor::f_zeros([count, 1], (Kind::Float, Device::Cpu))?,
        };
        Batch::new((&clean + noise).f_repeat([1, 4])?, clean)
    }
}

/// A data set that uses no random numbers. While its first batch is gathered, another thread uses
/// random numbers.
struct Disturbed {
    gathered_on: Vec<Option<String>>,
}

impl Dataset for Disturbed {
    type Batch = Batch;

    fn len(&self) -> i64 {
        6
    }

    fn gather(&mut self, indices: &[i64]) -> Result<Batch> {
        if self.gathered_on.is_empty() {
            let other = thread::spawn(|| drop(Tensor::rand([1], (Kind::Float, Device::Cpu))));
            other.join().expect("it only draws");
        }
        self.gathered_on.push(thread::current().name().map(str::to_owned));
        if self.gathered_on.len() == 4 {
            let ahead =
                self.gathered_on.iter().filter(|name| name.as_deref() == Some("data loader"));
            assert_eq!(ahead.count(), 2, "{:?}", self.gathered_on);
        }
        let x = Tensor::f_from_slice(indices)?.f_to_kind(Kind::Float)?.f_view([-1, 1])?;
        Batch::new(x.shallow_clone(), x)
    }
}

/// The loader does not mistake another thread's random numbers for those of the data set. It
/// therefore still loads batches ahead, which it does not do for a data set that uses libtorch's
/// generator.
#[test]
fn draws_of_another_thread_are_not_the_sets() -> Result<()> {
    // The other thread draws from libtorch's generator. Until `_section` is dropped, no other test
    // can use this generator.
    let _section = seeded(0);
    let data = SharedDataset::from(Disturbed { gathered_on: Vec::new() });
    let loading = Loading { placement: Placement::Host, prefetch: Some(2), ..Loading::default() };
    let loader = DataLoader::new(&data, 2, loading, Policy::new(Precision::F32True, device()))?;
    let batches: Result<Vec<AnyBatch>> = loader.epoch(0, 0)?.collect();
    assert_eq!(batches?.len(), 3);
    Ok(())
}

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Net {
    #[layer(sequential(linear(4, 8), relu, dropout(0.5), linear(8, 1)))]
    body: Sequential,
}

fn config(epochs: i64, steps: Option<u64>) -> TrainerConfig {
    TrainerConfig {
        max_epochs: epochs,
        max_steps: steps,
        seed: 5,
        ..TrainerConfig::new(Precision::F32True, device())
    }
}

fn data(set: Noisy, prefetch: usize, batch: i64) -> DataModule {
    let loading =
        Loading { placement: Placement::Host, prefetch: Some(prefetch), ..Loading::default() };
    DataModule { loading, ..DataModule::new("noisy", set, set, batch) }
}

/// Trains for two epochs and returns the weights.
fn train(set: Noisy, prefetch: usize) -> Result<Vec<f64>> {
    let _section = seeded(1);
    let mut net = Net::builder().build()?;
    Trainer::new(config(2, None)).fit(&mut net, &data(set, prefetch, 4))?;
    Ok(weights(&net))
}

fn weights(net: &Net) -> Vec<f64> {
    nn::parameters(net).iter().flat_map(|own| values(&own.tensor)).collect()
}

/// pytorch PR#174106: a data set uses the same random numbers, however its data is loaded. In
/// PyTorch, the random numbers differed from run to run if batches were loaded ahead.
#[rstest]
fn draws_of_a_set_do_not_depend_on_the_way_of_loading(
    #[values(Noisy::OfLibtorch, Noisy::OfItsOwn, Noisy::Silent)] set: Noisy,
) -> Result<()> {
    let expected = train(set, 0)?;
    for prefetch in [0, 1, 3] {
        for _ in 0..3 {
            assert_eq!(train(set, prefetch)?, expected, "{prefetch} batches ahead");
        }
    }
    Ok(())
}

/// If a run is resumed in the middle of an epoch, its data set uses the same random numbers. The
/// run ends with the same weights as a run without interruption.
#[rstest]
fn a_resumed_run_draws_the_same_numbers(
    #[values(Noisy::OfLibtorch, Noisy::OfItsOwn)] set: Noisy,
    #[values(0, 2)] prefetch: usize,
    #[values(4, 6, 9)] steps: u64,
) -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let first = {
        let _section = seeded(1);
        let mut net = Net::builder().build()?;
        let saves = ModelCheckpoint::new(folder.path(), "val_loss", Mode::Min)?.save_last(true);
        Trainer::new(config(2, Some(steps)))
            .callback(saves)
            .fit(&mut net, &data(set, prefetch, 4))?;
        weights(&net)
    };
    let _section = seeded(99);
    let mut net = Net::builder().build()?;
    let last = folder.path().join("last.safetensors");
    Trainer::new(config(2, None)).resume_from(last).fit(&mut net, &data(set, prefetch, 4))?;
    let straight = train(set, 0)?;
    assert_eq!(weights(&net), straight);
    assert_ne!(first, straight);
    Ok(())
}

/// The model uses the same random numbers, whether or not its data set uses random numbers too.
#[test]
fn a_sets_draws_do_not_change_the_models() -> Result<()> {
    let after = |set| -> Result<f64> {
        let _section = seeded(1);
        let mut net = Net::builder().build()?;
        let config = TrainerConfig { device: Device::Cpu, ..config(1, None) };
        Trainer::new(config).fit(&mut net, &data(set, 0, 4))?;
        Ok(Tensor::f_rand([1], (Kind::Float, Device::Cpu))?.double_value(&[0]))
    };
    assert_eq!(after(Noisy::OfLibtorch)?, after(Noisy::Silent)?);
    Ok(())
}

/// Each example has its own random numbers. They change from epoch to epoch, and do not depend on
/// the batch that contains the example.
#[test]
fn examples_have_their_own_random_numbers() -> Result<()> {
    let (one, next) = (Draws::new(5, 0), Draws::new(5, 1));
    let mut seeds: Vec<u64> =
        (0..100).flat_map(|at| [one.seed(at), next.seed(at), Draws::new(6, 0).seed(at)]).collect();
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), 300);
    let policy = amp_core::precision::Policy::new(Precision::F32True, Device::Cpu);
    let examples = |batch: i64| -> Result<Vec<f64>> {
        let loader = data(Noisy::OfItsOwn, 0, batch).in_order().train_loader(policy, 0)?.drawing(5);
        let batches: Result<Vec<Tensor>> = loader
            .epoch(1, 0)?
            .map(|batch| Ok(Batch::from_any(&batch?)?.input.f_select(1, 0)?))
            .collect();
        Ok(values(&Tensor::f_cat(&batches?, 0)?))
    };
    assert_eq!(examples(4)?, examples(6)?);
    Ok(())
}
