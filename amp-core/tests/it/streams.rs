//! Tests of streams. They are read in sequence over all epochs, and resumed at their position.

use amp_core::{
    Trainer, TrainerConfig,
    callback::{Mode, ModelCheckpoint},
    data::{DataLoader, InOrder, IterableDataset, Limit, Loading, Placement, SharedDataset},
    nn,
    precision::Policy,
    prelude::*,
    random::Rng,
    state::State,
};
use rstest::rstest;
use tempfile::tempdir;

use crate::support::{bits::values, data::numbered, device, message, seeded};

/// A stream that returns the numbers 0, 1, 2, …. Its state is a tensor that it modifies in place.
struct Numbers {
    next: Tensor,
    noise: f64,
    /// The number at which reading fails once.
    fails: Option<i64>,
}

impl Numbers {
    fn new() -> Self {
        Self { next: Tensor::from(0_i64), noise: 0.0, fails: None }
    }

    fn noisy() -> Result<SharedDataset> {
        Self { noise: 0.5, ..Self::new() }.shared()
    }
}

impl IterableDataset for Numbers {
    type Example = Batch;

    fn epoch_len(&self) -> i64 {
        11
    }

    fn next(&mut self, rng: &mut Rng) -> Result<Batch> {
        let number = self.next.int64_value(&[]);
        let _ = self.next.f_add_scalar_(1)?;
        if self.fails.take_if(|at| *at == number).is_some() {
            return Err(Error::config("the line was cut"));
        }
        let noise = if self.noise > 0.0 { self.noise * rng.normal() } else { 0.0 };
        let x = [(number as f64 + noise) / 20.0; 4];
        Ok(Batch {
            input: Tensor::f_from_slice(&x)?,
            target: Tensor::f_from_slice(&[number as f64])?,
        })
    }

    fn state(&self) -> Result<State> {
        let mut state = State::default();
        state.put_tensor("next", &self.next);
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        self.next = state.tensor("next")?.copy();
        Ok(())
    }
}

fn loader(set: &SharedDataset, loading: Loading) -> Result<DataLoader> {
    DataLoader::new(set, 3, loading, Policy::new(Precision::F32True, device()))
}

fn loading(prefetch: usize) -> Loading {
    Loading { placement: Placement::Host, prefetch: Some(prefetch), ..Loading::default() }
}

/// Returns the numbers in at most `most` batches of the epoch, beginning with batch `first`
/// (counted from 0).
fn read(loader: &DataLoader, epoch: u64, first: i64, most: usize) -> Result<Vec<Vec<f64>>> {
    let batches = loader.epoch(epoch, first)?.take(most);
    batches.map(|batch| Ok(values(batch?.required("target")?))).collect()
}

/// An epoch begins where the previous epoch has ended. This also holds if the previous epoch was
/// not read to its end, or if the loader has read ahead.
#[rstest]
fn an_epoch_begins_where_the_previous_one_ended(#[values(0, 2)] prefetch: usize) -> Result<()> {
    let way = loading(prefetch);
    let all = |loader: &DataLoader| -> Result<Vec<f64>> {
        let epochs: Result<Vec<_>> = (0..3).map(|epoch| read(loader, epoch, 0, 99)).collect();
        Ok(epochs?.concat().concat())
    };
    let whole = loader(&Numbers::new().shared()?, way)?.shuffled(1);
    assert!(all(&whole)?.into_iter().eq((0..33).map(f64::from)), "a stream is not shuffled");
    let full = loader(&Numbers::new().shared()?, Loading { drop_last: true, ..way })?;
    assert!(all(&full)?.into_iter().eq((0..27).map(f64::from)));
    let few = loader(&Numbers::new().shared()?, way)?.limited(Limit::Batches(2));
    assert!(all(&few)?.into_iter().eq((0..18).map(f64::from)));
    Ok(())
}

/// An epoch that is dropped in the middle can be read again from any batch that was already read.
#[rstest]
fn a_stream_can_be_read_again_from_any_batch(#[values(0, 2)] prefetch: usize) -> Result<()> {
    let loader = loader(&Numbers::new().shared()?, loading(prefetch))?;
    let first = read(&loader, 0, 0, 2)?;
    assert_eq!(first, [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
    assert_eq!(
        read(&loader, 0, 1, 9)?,
        [vec![3.0, 4.0, 5.0], vec![6.0, 7.0, 8.0], vec![9.0, 10.0]]
    );
    assert_eq!(read(&loader, 0, 0, 2)?, first);
    let text = message(read(&loader, 3, 0, 1));
    assert_eq!(text, "the stream has no saved state of its example 33: read its examples in order");
    Ok(())
}

/// If reading an example fails, the error contains the index of the example. The next attempt reads
/// the batch of this example again, from the first example of the batch on.
#[rstest]
fn a_failed_batch_is_read_again(#[values(0, 2)] prefetch: usize) -> Result<()> {
    let set = Numbers { fails: Some(7), ..Numbers::new() }.shared()?;
    let loader = loader(&set, loading(prefetch))?;
    assert_eq!(message(read(&loader, 0, 0, 9)), "example 7 of the data set: the line was cut");
    assert_eq!(read(&loader, 0, 2, 9)?, [vec![6.0, 7.0, 8.0], vec![9.0, 10.0]]);
    Ok(())
}

#[test]
fn streams_have_one_order_and_no_end() -> Result<()> {
    let set = Numbers::new().shared()?;
    let on_device = Loading { placement: Placement::Device, ..Loading::default() };
    let text = message(loader(&set, on_device));
    assert!(
        text.starts_with("`placement = device` copies the dataset once, but a stream has no end"),
        "{text}"
    );
    let data = DataModule::training("numbers", set, 3).with_order(InOrder);
    let text = message(data.train_loader(Policy::new(Precision::F32True, device()), 1));
    assert_eq!(
        text,
        "a stream cannot be read in the order of a sampler, but the sampler `in order` is set: leave it out"
    );
    Ok(())
}

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 1e-3)]
struct Net {
    #[layer(sequential(linear(4, 8), relu, linear(8, 1)))]
    body: Sequential,
}

fn weights(net: &Net) -> Vec<f64> {
    nn::parameters(net).iter().flat_map(|own| values(&own.tensor)).collect()
}

fn trained<'a>(
    prefetch: usize,
    steps: Option<u64>,
    change: impl FnOnce(Trainer<'a>) -> Result<Trainer<'a>>,
) -> Result<Vec<f64>> {
    let _section = seeded(1);
    let mut config = TrainerConfig::new(Precision::F32True, device());
    (config.max_epochs, config.max_steps, config.seed) = (3, steps, 5);
    let val = Batch::new(Tensor::ones([8, 4], (Kind::Float, Device::Cpu)), numbered(8)?.input)?;
    let data = DataModule {
        loading: loading(prefetch),
        ..DataModule::new("numbers", Numbers::noisy()?, val, 3)
    };
    let mut net = Net::builder().build()?;
    change(Trainer::new(config))?.fit(&mut net, &data)?;
    Ok(weights(&net))
}

/// A resumed run continues with the next example, in the middle of an epoch and between two epochs.
#[rstest]
fn a_resumed_run_continues_with_the_next_example(
    #[values(3, 4, 6, 9)] steps: u64,
    #[values((0, 2), (2, 0))] prefetch: (usize, usize),
) -> Result<()> {
    let straight = trained(0, None, Ok)?;
    let folder = tempdir().expect("a temporary folder");
    let first = trained(prefetch.0, Some(steps), |trainer| {
        Ok(trainer
            .callback(ModelCheckpoint::new(folder.path(), "val_loss", Mode::Min)?.save_last(true)))
    })?;
    let last = folder.path().join("last.safetensors");
    let resumed = trained(prefetch.1, None, |trainer| Ok(trainer.resume_from(last)))?;
    assert_eq!(resumed, straight);
    assert_ne!(first, straight);
    Ok(())
}

/// With `overfit_batches`, each epoch reads the first batches of the stream, also in a resumed run.
#[test]
fn overfitting_reads_the_same_batches_in_each_epoch() -> Result<()> {
    let config = TrainerConfig::new(Precision::F32True, device())
        .with(|config| config.loops.overfit_batches = Some(Limit::Batches(2)));
    let data = DataModule::training("numbers", Numbers::new().shared()?, 3);
    let loader = config.train_loader(&data)?;
    for epoch in 0..3 {
        let batches = read(&loader, epoch, 0, 99)?;
        assert_eq!(batches, [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], "epoch {epoch}");
    }
    assert_eq!(read(&loader, 5, 1, 99)?, [[3.0, 4.0, 5.0]]);
    Ok(())
}
