//! Tests that transforms of whole batches give the same batches with any number of workers, with
//! any placement of the data, and after a resume.

use std::{path::Path, sync::Arc};

use amp_core::{
    callback::{Mode, ModelCheckpoint},
    data::{
        AnyBatch, BatchRandom, BatchTransform, CutMix, DataLoader, Images, Loading, MapDataset,
        MixUp, Normalize, Placement, SharedDataset, SharedTensor, Shuffled,
    },
    loss::{CrossEntropy, Loss},
    nn,
    precision::Policy,
    prelude::*,
    random::{Draws, Rng},
    tch::IndexOp,
};
use rstest::rstest;

use crate::{
    batch_transforms::{COUNT, composed, images, pixels},
    support::{bits::sha256, message, seeded},
};

/// A data set that returns single images. Each image is shifted by a random number of pixels.
struct Examples(SharedTensor);

impl MapDataset for Examples {
    type Example = Batch;

    fn len(&self) -> i64 {
        COUNT
    }

    fn get(&self, index: i64, rng: &mut Rng) -> Result<Batch> {
        let image = self.0.get().i(index).roll([rng.below(9)], [1]);
        Ok(Batch { input: image, target: Tensor::from(index % 3) })
    }
}

fn in_memory() -> Result<SharedDataset> {
    let classes = Tensor::arange(COUNT, (Kind::Int64, Device::Cpu)).remainder(3);
    Ok(Batch::new(pixels(3), classes)?.into())
}

fn changed(set: SharedDataset) -> Result<SharedDataset> {
    Ok(set
        .transformed(Images::new(composed()))
        .transformed(CutMix::new(1.0, 3)?)
        .transformed(MixUp::new(0.5, 3)?))
}

fn epoch(
    set: &SharedDataset,
    loading: Loading,
    precision: Precision,
    first: i64,
) -> Result<Vec<(String, String)>> {
    let policy = Policy::new(precision, Device::Cpu);
    let loader = DataLoader::new(set, 5, loading, policy)?.ordered(Shuffled, 7)?.drawing(7);
    let batches = loader.epoch(4, first)?.map(|batch| {
        let Batch { input, target } = Batch::from_any(&batch?)?;
        assert_eq!((input.kind(), target.size()[1]), (precision_kind(precision), 3));
        Ok((sha256(&input), sha256(&target)))
    });
    batches.collect()
}

fn precision_kind(precision: Precision) -> Kind {
    match precision {
        Precision::Bf16True => Kind::BFloat16,
        Precision::F64True => Kind::Double,
        _ => Kind::Float,
    }
}

/// The batches are the same whether the data is read from memory, loaded ahead, loaded by workers
/// or stored on the device. They are also the same if an epoch starts at a later batch.
#[rstest]
fn batches_do_not_depend_on_how_they_are_loaded(
    #[values(Precision::F32True, Precision::Bf16True, Precision::F64True)] precision: Precision,
) -> Result<()> {
    let ways = |placements: &[Placement], prefetch: &[Option<usize>], workers: &[usize]| {
        let mut all = Vec::new();
        for placement in placements {
            for prefetch in prefetch {
                for num_workers in workers {
                    let (placement, prefetch, num_workers) = (*placement, *prefetch, *num_workers);
                    all.push(Loading { placement, prefetch, num_workers, ..Loading::default() });
                }
            }
        }
        all
    };
    let memory = changed(in_memory()?)?;
    let expected = epoch(&memory, Loading::default(), precision, 0)?;
    assert_eq!(expected.len(), 3);
    let host = ways(&[Placement::Host], &[None, Some(0), Some(2)], &[0]);
    for loading in host.into_iter().chain(ways(&[Placement::Device], &[None], &[0])) {
        assert_eq!(epoch(&memory, loading, precision, 0)?, expected, "{loading:?}");
        assert_eq!(epoch(&memory, loading, precision, 1)?, expected[1..], "{loading:?}");
    }
    let examples = changed(Examples(pixels(3).into()).shared())?;
    let expected = epoch(&examples, Loading::default(), precision, 0)?;
    for loading in ways(&[Placement::Host], &[None, Some(3)], &[0, 1, 3]) {
        assert_eq!(epoch(&examples, loading, precision, 0)?, expected, "{loading:?}");
        assert_eq!(epoch(&examples, loading, precision, 2)?, expected[2..], "{loading:?}");
    }
    Ok(())
}

/// Under a 16-bit precision, floating-point images are transformed in f32, and only then cast to 16
/// bits.
#[test]
fn batches_are_changed_before_they_are_narrowed() -> Result<()> {
    let classes = Tensor::arange(COUNT, (Kind::Int64, Device::Cpu)).remainder(3);
    let floats = Batch::new(images(3, Kind::Float), classes)?;
    let set = SharedDataset::from(floats).transformed(Images::new(composed()));
    for placement in [Placement::Host, Placement::Device] {
        let batch = |precision| -> Result<Tensor> {
            let loading = Loading { placement, ..Loading::default() };
            let policy = Policy::new(precision, Device::Cpu);
            let loader = DataLoader::new(&set, COUNT, loading, policy)?.drawing(7);
            let first = loader.epoch(0, 0)?.next().expect("a batch")?;
            Ok(first.required("input")?.shallow_clone())
        };
        let (narrow, wide) = (batch(Precision::Bf16True)?, batch(Precision::F32True)?);
        assert_eq!((narrow.kind(), wide.kind()), (Kind::BFloat16, Kind::Float));
        assert_eq!(sha256(&narrow), sha256(&wide.to_kind(Kind::BFloat16)));
    }
    Ok(())
}

/// The random numbers that a batch transform gets differ from epoch to epoch, and from those that
/// the data set gets.
#[test]
fn numbers_of_batches_are_their_own() -> Result<()> {
    #[derive(Clone)]
    struct Record(Arc<std::sync::Mutex<Vec<u64>>>);
    impl BatchTransform for Record {
        fn apply(&self, batch: AnyBatch, random: &mut BatchRandom) -> Result<AnyBatch> {
            let own = random.examples().iter_mut().map(Rng::bits).collect::<Vec<_>>();
            self.0.lock().expect("a list").extend(own);
            self.0.lock().expect("a list").push(random.batch().bits());
            Ok(batch)
        }
    }
    let numbers = Record(Arc::default());
    let set = in_memory()?.transformed(numbers.clone());
    let policy = Policy::new(Precision::F32True, Device::Cpu);
    let loader = DataLoader::new(&set, 6, Loading::default(), policy)?.drawing(7);
    for number in [0, 1, 0] {
        loader.epoch(number, 0)?.try_for_each(|batch| batch.map(drop))?;
    }
    let drawn = numbers.0.lock().expect("a list").clone();
    assert_eq!(drawn.len(), 3 * 14);
    assert_eq!(drawn[..14], drawn[28..]);
    let mut different = drawn[..28].to_vec();
    different.extend(
        (0..COUNT)
            .flat_map(|index| (0..2).map(move |epoch| Draws::new(7, epoch).rng(index).bits())),
    );
    let count = different.len();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), count);
    Ok(())
}

/// `head` and `gather` apply the transforms of a data set to the examples that they return.
#[test]
fn a_look_at_a_set_has_its_changes() -> Result<()> {
    let set = in_memory()?.transformed(Images::new(Normalize::imagenet()));
    let seen = set.head(4)?;
    assert_eq!((seen.len(), seen.required("input")?.kind()), (4, Kind::Float));
    let gathered = set.gather(&[3, 1])?;
    let wanted = seen.required("input")?.index_select(0, &Tensor::from_slice(&[3_i64, 1]));
    assert_eq!(sha256(gathered.required("input")?), sha256(&wanted));
    let field = in_memory()?.transformed(Images::new(Normalize::imagenet()).of_field("image"));
    assert!(message(field.head(1)).contains("`image`"));
    Ok(())
}

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-2)]
struct Net {
    #[layer(sequential(conv2d(3, 4, 3), relu, dropout(0.2), flatten, linear(64, 3)))]
    all: Sequential,
}

/// A run that resumes in the middle of an epoch ends with the same weights as an uninterrupted run,
/// even if the two load their data in different ways. Transforms of whole batches do not change the
/// random numbers of the model.
#[rstest]
fn a_resumed_run_equals_the_straight_one(#[values(2, 3, 5)] steps: u64) -> Result<()> {
    let data = |num_workers, prefetch| -> Result<DataModule> {
        let train = changed(Examples(pixels(3).into()).shared())?;
        let mut data = DataModule::new("images", train, changed(in_memory()?)?, 5);
        (data.loading.num_workers, data.loading.prefetch) = (num_workers, prefetch);
        data.loading.placement = Placement::Host;
        Ok(data)
    };
    let config = |max_steps| {
        let mut config = TrainerConfig::new(Precision::F32True, Device::Cpu);
        (config.max_epochs, config.max_steps, config.seed) = (3, max_steps, 4);
        config
    };
    let run = |seed, max_steps, data: &DataModule, from: Option<&Path>, to: Option<&Path>| {
        let _section = seeded(seed);
        let mut net = Net::builder().build()?;
        let mut trainer = Trainer::new(config(max_steps));
        if let Some(folder) = to {
            trainer = trainer
                .callback(ModelCheckpoint::new(folder, "val_loss", Mode::Min)?.save_last(true));
        }
        if let Some(path) = from {
            trainer = trainer.resume_from(path);
        }
        trainer.fit(&mut net, data)?;
        Ok::<_, Error>(
            nn::parameters(&net).iter().map(|own| sha256(&own.tensor)).collect::<Vec<_>>(),
        )
    };
    let straight = run(1, None, &data(0, None)?, None, None)?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stopped = run(1, Some(steps), &data(2, None)?, None, Some(folder.path()))?;
    assert_ne!(stopped, straight);
    let last = folder.path().join("last.safetensors");
    assert_eq!(run(99, None, &data(0, Some(2))?, Some(&last), None)?, straight);
    Ok(())
}

#[test]
fn a_change_must_keep_the_batch() -> Result<()> {
    struct Half;
    impl BatchTransform for Half {
        fn apply(&self, batch: AnyBatch, _: &mut BatchRandom) -> Result<AnyBatch> {
            batch.narrow(0, batch.len() / 2)
        }
    }
    let text = message(in_memory()?.transformed(Half).head(4));
    assert!(
        text.contains(
            "2 examples for 4 indices: `BatchTransform::apply` must give one for each index"
        ),
        "{text}"
    );
    let mut batch = in_memory()?.head(4)?;
    let text = message(batch.replace("input", &Tensor::zeros([3, 1], (Kind::Float, Device::Cpu))));
    assert_eq!(text, "the batch `Batch` has 4 examples, but the tensor for `input` has 3");
    assert!(message(batch.replace("x", &Tensor::from(1.0))).contains("`x`"));
    let text =
        message(MixUp::new(1.0, 3)?.apply(&Batch::from_any(&batch)?, &mut Rng::with_seed(1)));
    assert!(text.contains("normalize them first"), "{text}");
    let text =
        message(CutMix::new(1.0, 2)?.apply(&Batch::from_any(&batch)?, &mut Rng::with_seed(1)));
    assert_eq!(text, "CutMix: a target is the class 2, but the classes are 0 to 1");
    assert!(message(CutMix::new(0.0, 2)).contains("both must be positive"));
    Ok(())
}

/// A transform that replaces the class 1 by -100, which losses ignore.
struct IgnoresOnes;

impl BatchTransform for IgnoresOnes {
    fn apply(&self, mut batch: AnyBatch, _: &mut BatchRandom) -> Result<AnyBatch> {
        let target = batch.required("target")?;
        let masked = target.f_masked_fill(&target.f_eq(1)?, -100)?;
        batch.replace("target", &masked)?;
        Ok(batch)
    }
}

/// Targets that a transform replaces by the ignored class are not counted in the mean of the loss,
/// wherever the data set is stored. The stored targets contain no ignored class, so they must be
/// counted after the transform.
#[rstest]
fn targets_that_a_transform_ignores_do_not_count(
    #[values(Placement::Host, Placement::Device)] placement: Placement,
) -> Result<()> {
    let input = Tensor::zeros([6, 3], (Kind::Float, Device::Cpu));
    let set = Batch::new(input, Tensor::from_slice(&[0_i64, 1, 1, 2, 0, 1]))?;
    let set = SharedDataset::from(set).transformed(IgnoresOnes);
    let policy = Policy::new(Precision::F32True, Device::Cpu);
    let loading = Loading { placement, ..Loading::default() };
    let loss = CrossEntropy::default();
    let counted = DataLoader::new(&set, 3, loading, policy)?;
    let counted = counted.epoch(0, 0)?.map(|batch| {
        let batch = batch?;
        batch.counted_over(&loss.mean_over(), batch.required("target")?)?.read()
    });
    assert_eq!(counted.collect::<Result<Vec<_>>>()?, [1.0, 2.0]);
    Ok(())
}
