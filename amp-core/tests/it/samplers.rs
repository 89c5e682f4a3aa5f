//! Tests of samplers. The examples of an epoch and their order depend only on the seed and the
//! epoch.

use amp_core::{
    Trainer, TrainerConfig,
    callback::{Mode, ModelCheckpoint},
    data::{
        Bucketed, DataLoader, Distributed, Epoch, InOrder, Loading, Order, Placement, Sampler,
        Shuffled, Subset, Tail, Weighted,
    },
    nn,
    precision::Policy,
    prelude::*,
};
use rstest::rstest;
use tempfile::tempdir;

use crate::support::{bits::values, data::numbered, device, message, seeded};

fn epoch(examples: i64, batch_size: i64) -> Epoch {
    Epoch { seed: 3, epoch: 2, examples, batch_size }
}

fn sorted(mut order: Vec<i64>) -> Vec<i64> {
    order.sort_unstable();
    order
}

/// Each example is chosen in proportion to its weight, within five standard deviations of the
/// binomial distribution. Examples with weight 0 are never chosen, wherever they are in the list.
#[test]
fn examples_are_drawn_in_proportion_to_their_weights() -> Result<()> {
    let weights = [0.0, 1.0, 2.5, 0.0, 0.5, 6.0, 0.0];
    let draws = 200_000;
    let order = Weighted::new(weights.to_vec(), draws)?.order(&epoch(7, 4))?;
    assert_eq!(order.len() as i64, draws);
    for (index, weight) in (0..).zip(weights) {
        let (n, p) = (draws as f64, weight / 10.0);
        let seen = order.iter().filter(|drawn| **drawn == index).count() as f64;
        assert!((seen - n * p).abs() <= 5.0 * (n * p * (1.0 - p)).sqrt(), "{index}: {seen}");
    }
    Ok(())
}

/// With balanced weights, examples of classes with 1, 9 and 90 examples are chosen equally often.
#[test]
fn balanced_weights_draw_each_class_equally_often() -> Result<()> {
    let class = |index: i64| match index {
        0 => 0,
        1..10 => 1,
        _ => 2,
    };
    let classes: Vec<i64> = (0..100).map(class).collect();
    let weights = Weighted::balanced(&classes);
    assert_eq!((weights[0], weights[5], weights[50]), (1.0, 1.0 / 9.0, 1.0 / 90.0));
    let order = Weighted::new(weights, 30_000)?.order(&epoch(100, 4))?;
    for of in 0..3 {
        let seen = order.iter().filter(|index| class(**index) == of).count() as f64;
        assert!((seen - 1e4).abs() <= 5.0 * (3e4 * 2.0 / 9.0_f64).sqrt(), "class {of}: {seen}");
    }
    Ok(())
}

/// `Bucketed` returns every example once. If all examples are in one pool (which is sorted by
/// length), each batch contains examples of neighbouring lengths, and the batches are in random
/// order. In smaller pools, the lengths of a batch differ more, but less than with `Shuffled`.
#[rstest]
fn batches_have_similar_lengths(#[values(60, 67)] examples: i64) -> Result<()> {
    let lengths: Vec<i64> = (0..examples).map(|at| at * 37 % 61).collect();
    let order = Bucketed::new(lengths.clone()).order(&epoch(examples, 5))?;
    assert!(sorted(order.clone()).into_iter().eq(0..examples));
    let length = |index: &i64| lengths[*index as usize];
    let full: Vec<(i64, i64)> = order
        .chunks_exact(5)
        .map(|batch| {
            let lengths = || batch.iter().map(length);
            (lengths().min().expect("five"), lengths().max().expect("five"))
        })
        .collect();
    let mut ordered = full.clone();
    ordered.sort_unstable();
    assert!(ordered.windows(2).all(|two| two[0].1 <= two[1].0), "{ordered:?}");
    assert_ne!(ordered, full, "the batches are shuffled");
    let pooled = Bucketed::new(lengths.clone()).pool(2).order(&epoch(examples, 5))?;
    let spread = |order: &[i64]| -> i64 {
        let spread = |batch: &[i64]| {
            let lengths = || batch.iter().map(length);
            lengths().max().expect("some") - lengths().min().expect("some")
        };
        order.chunks_exact(5).map(spread).sum()
    };
    let shuffled = Shuffled.order(&epoch(examples, 5))?;
    assert!(spread(&order) < spread(&pooled) && spread(&pooled) < spread(&shuffled));
    Ok(())
}

/// The examples of an incomplete last batch are random, so `drop_last` does not always drop the
/// same lengths.
#[test]
fn an_incomplete_last_batch_has_random_lengths() -> Result<()> {
    let lengths: Vec<i64> = (0..11).collect();
    let mut last = Vec::new();
    for number in 0..200 {
        let epoch = Epoch { epoch: number, ..epoch(11, 5) };
        last.extend(Bucketed::new(lengths.clone()).order(&epoch)?.pop());
    }
    let last = sorted(last);
    assert!(lengths.iter().all(|length| last.contains(length)), "{last:?}");
    Ok(())
}

/// `Distributed` gives each process the same examples as
/// `torch.utils.data.DistributedSampler(range(n), R, r, shuffle=False, drop_last=…)` of torch 2.11.
#[rstest]
#[case(10, Tail::Pad, vec![vec![0, 4, 8], vec![1, 5, 9], vec![2, 6, 0], vec![3, 7, 1]])]
#[case(10, Tail::Drop, vec![vec![0, 4], vec![1, 5], vec![2, 6], vec![3, 7]])]
#[case(8, Tail::Pad, vec![vec![0, 4], vec![1, 5], vec![2, 6], vec![3, 7]])]
#[case(8, Tail::Drop, vec![vec![0, 4], vec![1, 5], vec![2, 6], vec![3, 7]])]
#[case(3, Tail::Pad, vec![vec![0], vec![1], vec![2], vec![0]])]
#[case(2, Tail::Pad, vec![vec![0], vec![1], vec![0], vec![1], vec![0]])]
#[case(11, Tail::Drop, vec![vec![0, 3, 6], vec![1, 4, 7], vec![2, 5, 8]])]
fn processes_get_the_same_examples_as_in_torch(
    #[case] examples: i64,
    #[case] tail: Tail,
    #[case] expected: Vec<Vec<i64>>,
) -> Result<()> {
    let processes = expected.len() as i64;
    for (rank, expected) in (0..).zip(expected) {
        let part = Distributed::new(InOrder, rank, processes, tail)?;
        assert_eq!(part.order(&epoch(examples, 2))?, expected);
        assert_eq!(part.len(examples), expected.len() as i64);
    }
    Ok(())
}

/// Each example is returned in exactly one process. The three batches that the processes read in
/// the same step contain examples of twelve consecutive lengths.
#[test]
fn processes_share_an_order() -> Result<()> {
    let lengths: Vec<i64> = (0..48).map(|at| at * 29 % 48).collect();
    let parts: Result<Vec<Vec<i64>>> = (0..3)
        .map(|rank| {
            let part = Distributed::new(Bucketed::new(lengths.clone()), rank, 3, Tail::Drop)?;
            part.order(&epoch(48, 4))
        })
        .collect();
    let parts = parts?;
    assert!(sorted(parts.concat()).into_iter().eq(0..48));
    for batch in 0..4 {
        let at_once = parts.iter().flat_map(|part| &part[4 * batch..4 * batch + 4]);
        let lengths: Vec<i64> = at_once.map(|index| lengths[*index as usize]).collect();
        let spread = lengths.iter().max().expect("some") - lengths.iter().min().expect("some");
        assert_eq!(spread, 11, "the lengths are not twelve consecutive ones: {lengths:?}");
    }
    Ok(())
}

#[test]
fn a_subset_follows_the_other_samplers_order() -> Result<()> {
    let subset = Subset::new(vec![7, 3, 5, 1], Shuffled)?;
    assert_eq!(subset.len(10), 4);
    let order = subset.order(&epoch(10, 2))?;
    assert_eq!(sorted(order.clone()), [1, 3, 5, 7]);
    let places = Shuffled.order(&epoch(4, 2))?;
    assert!(places.iter().map(|at| [7, 3, 5, 1][*at as usize]).eq(order));
    let weighted = Subset::new(vec![7, 3], Weighted::new(vec![0.0, 1.0], 5)?)?;
    assert_eq!(weighted.order(&epoch(10, 2))?, [3; 5]);
    Ok(())
}

/// A user-defined sampler that returns the given length and indices, which may be invalid.
#[derive(Debug)]
struct Given(i64, Vec<i64>);

impl Sampler for Given {
    fn name(&self) -> String {
        "given".into()
    }

    fn len(&self, _: i64) -> i64 {
        self.0
    }

    fn order(&self, _: &Epoch) -> Result<Vec<i64>> {
        Ok(self.1.clone())
    }
}

fn loader(sampler: impl Sampler + 'static, loading: Loading) -> Result<DataLoader> {
    let policy = Policy::new(Precision::F32True, device());
    let data = numbered(10)?.into();
    DataLoader::new(&data, 3, loading, policy)?.ordered(sampler, 3)
}

fn order(loader: &DataLoader, first: i64) -> Result<Vec<Vec<f64>>> {
    loader.epoch(2, first)?.map(|batch| Ok(values(batch?.required("target")?))).collect()
}

/// The batches contain the examples of the sampler in its order, including repeated examples. This
/// holds for data on the device and on the host, and for an epoch that begins at a later batch.
#[rstest]
fn batches_follow_the_sampler(
    #[values(Placement::Device, Placement::Host)] placement: Placement,
    #[values(None, Some(2))] prefetch: Option<usize>,
) -> Result<()> {
    if placement == Placement::Device && prefetch.is_some() {
        return Ok(());
    }
    let loading = Loading { placement, prefetch, ..Loading::default() };
    let given = || Given(7, vec![4, 4, 9, 0, 4, 2, 1]);
    let all = [vec![4.0, 4.0, 9.0], vec![0.0, 4.0, 2.0], vec![1.0]];
    let whole = loader(given(), loading)?;
    assert_eq!((whole.batches(), whole.batch_len(2)), (3, 1));
    for first in 0..=3 {
        assert_eq!(order(&whole, first)?, all[first as usize..]);
    }
    let full = loader(given(), Loading { drop_last: true, ..loading })?;
    assert_eq!((full.batches(), order(&full, 0)?), (2, all[..2].to_vec()));
    let draws = Weighted::new((0..10).map(f64::from).collect(), 25)?;
    let expected = draws.order(&epoch(10, 3))?;
    let seen = order(&loader(draws, loading)?, 0)?.concat();
    assert!(seen.iter().map(|seen| *seen as i64).eq(expected));
    Ok(())
}

#[rstest]
#[case(Given(4, vec![1, 2]), "the sampler `given` returned 2 examples, but its `len` is 4: make them equal")]
#[case(Given(2, vec![1, 10]), "the sampler `given` returned the index 10, but the indices of the set are 0 to 9")]
#[case(Given(2, vec![-1, 1]), "the sampler `given` returned the index -1, but the indices of the set are 0 to 9")]
#[case(Given(0, vec![]), "the sampler `given` draws 0 examples in an epoch, but a batch needs at least 1")]
fn invalid_orders_are_refused(#[case] given: Given, #[case] says: &str) {
    let read = loader(given, Loading::default()).and_then(|loader| order(&loader, 0));
    assert_eq!(message(read), says);
}

#[test]
fn invalid_samplers_are_refused() -> Result<()> {
    let refused = |made: Result<Weighted>| message(made);
    assert_eq!(
        refused(Weighted::new(vec![1.0, -2.0], 4)),
        "a weight is -2, but weights must be finite and at least 0"
    );
    assert!(refused(Weighted::new(vec![f64::NAN], 4)).starts_with("a weight is NaN"));
    assert_eq!(
        refused(Weighted::new(vec![0.0], 4)),
        "the weights add up to 0, so no example can be drawn"
    );
    assert_eq!(refused(Weighted::new(vec![1.0], 0)), "num_samples is 0: draw at least 1");
    let few = Weighted::new(vec![1.0], 4)?;
    let says = "1 weights for a set of 10 examples: give one per example";
    assert_eq!(message(few.order(&epoch(10, 2))), says);
    let says = "1 lengths for a set of 10 examples: give one per example";
    assert_eq!(message(Bucketed::new(vec![3]).order(&epoch(10, 2))), says);
    assert_eq!(message(Subset::new(vec![], InOrder)), "a subset needs at least one example");
    for rank in [-1, 2] {
        let text = message(Distributed::new(InOrder, rank, 2, Tail::Pad));
        assert!(text.starts_with(&format!("rank {rank} of 2 processes: a rank must")), "{text}");
    }
    let data = DataModule::training("numbers", numbered(10)?, 4).with_order(Given(3, vec![]));
    let text = message(data.check());
    assert!(
        text.starts_with("batch size 4 is larger than the 3 examples that the sampler `given`"),
        "{text}"
    );
    Ok(())
}

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 1e-3)]
struct Net {
    #[layer(sequential(linear(1, 4), relu, linear(4, 1)))]
    body: Sequential,
}

fn trained(
    sampler: impl Sampler + 'static,
    with: impl FnOnce(&mut TrainerConfig),
    resume: Option<&std::path::Path>,
    save: Option<&std::path::Path>,
) -> Result<Vec<f64>> {
    let _section = seeded(1);
    let x = Tensor::arange(24, (Kind::Float, Device::Cpu)).view([24, 1]) / 24.0;
    let data = Batch::new(x.shallow_clone(), x.square())?;
    let data = DataModule::new("squares", data, Batch::new(x.copy(), x.square())?, 4);
    let mut config = TrainerConfig::new(Precision::F32True, device());
    (config.max_epochs, config.seed) = (2, 5);
    with(&mut config);
    let mut trainer = Trainer::new(config);
    if let Some(folder) = save {
        trainer =
            trainer.callback(ModelCheckpoint::new(folder, "val_loss", Mode::Min)?.save_last(true));
    }
    if let Some(folder) = resume {
        trainer = trainer.resume_from(folder.join("last.safetensors"));
    }
    let mut net = Net::builder().build()?;
    trainer.fit(&mut net, &data.with_order(sampler))?;
    Ok(nn::parameters(&net).iter().flat_map(|own| values(&own.tensor)).collect())
}

/// A run saved in the middle of an epoch continues in the sampler's order, and refuses another
/// sampler.
#[test]
fn a_resumed_run_continues_in_the_samplers_order() -> Result<()> {
    let weighted = |first| {
        let mut weights: Vec<f64> = (0..24).map(|at| f64::from(1 + at % 5)).collect();
        weights[0] = first;
        Weighted::new(weights, 20)
    };
    let straight = trained(weighted(1.0)?, |_| {}, None, None)?;
    let folder = tempdir().expect("a temporary folder");
    let first =
        trained(weighted(1.0)?, |config| config.max_steps = Some(7), None, Some(folder.path()))?;
    let resumed = trained(weighted(1.0)?, |_| {}, Some(folder.path()), None)?;
    assert_eq!(resumed, straight);
    assert_ne!(first, straight);
    assert_ne!(trained(Shuffled, |_| {}, None, None)?, straight);
    for other in [
        message(trained(weighted(2.0)?, |_| {}, Some(folder.path()), None)),
        message(trained(Shuffled, |_| {}, Some(folder.path()), None)),
    ] {
        assert!(
            other.contains("saved by a run whose sampler is \"weighted, 20 draws, weights "),
            "{other}"
        );
    }
    Ok(())
}

/// If no sampler is given, the trainer uses the order of `Shuffled`.
#[test]
fn the_default_order_is_shuffled() -> Result<()> {
    let own = {
        let policy = Policy::new(Precision::F32True, device());
        let data = DataModule::training("numbers", numbered(10)?, 3);
        order(&data.train_loader(policy, 3)?, 0)?
    };
    assert_eq!(order(&loader(Shuffled, Loading::default())?, 0)?, own);
    Ok(())
}

/// `Order::InOrder` gives the order of the sampler `InOrder`, but stores no indices.
#[test]
fn the_sets_own_order_is_in_order() -> Result<()> {
    let policy = Policy::new(Precision::F32True, device());
    let own =
        DataModule::training("numbers", numbered(10)?, 3).in_order().train_loader(policy, 3)?;
    assert_eq!(order(&own, 1)?, order(&loader(InOrder, Loading::default())?, 1)?);
    // If the order of a loader is set twice, the second one is used.
    let sampled = loader(Weighted::new(vec![1.0; 10], 4)?, Loading::default())?;
    assert_eq!(sampled.batches(), 2);
    assert_eq!(sampled.ordered(Order::InOrder, 3)?.batches(), 4);
    Ok(())
}
