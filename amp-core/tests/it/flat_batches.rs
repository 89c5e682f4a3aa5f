//! Tests of batches whose shared tensors hold rows of all examples, as in PyTorch Geometric: the
//! nodes of graphs of different sizes, one after the other. Such a batch cannot be divided, because
//! a part of its examples would have the nodes of all graphs.

use amp_core::{
    Trainer, TrainerConfig,
    data::{AnyBatch, BatchType, FieldRole, Loading, MapDataset, Placement, SharedDataset},
    precision::Policy,
    prelude::*,
    random::Rng,
};
use rstest::rstest;

use crate::support::{bits::values, message, seeded};

#[derive(Batch)]
struct Graphs {
    /// The nodes of all graphs of the batch.
    #[batch(shared)]
    x: Tensor,
    /// The number of nodes of each graph.
    #[batch(ids)]
    nodes: Tensor,
    target: Tensor,
}

/// A data set of graphs. The graph with the index i has i + 1 nodes, and each of these nodes has
/// the value i.
struct Growing(i64);

impl MapDataset for Growing {
    type Example = Graphs;

    fn len(&self) -> i64 {
        self.0
    }

    fn get(&self, index: i64, _: &mut Rng) -> Result<Graphs> {
        Ok(Graphs {
            x: Tensor::f_full([index + 1, 1], index, (Kind::Float, Device::Cpu))?,
            nodes: Tensor::from(index + 1),
            target: Tensor::f_from_slice(&[index as f32])?,
        })
    }

    fn collate(&self, examples: &[(i64, Graphs)], _: &mut Rng) -> Result<AnyBatch> {
        let of = |field: fn(&Graphs) -> &Tensor| -> Vec<&Tensor> {
            examples.iter().map(|(_, graph)| field(graph)).collect()
        };
        Graphs {
            x: Tensor::f_cat(&of(|graph| &graph.x), 0)?,
            nodes: Tensor::f_stack(&of(|graph| &graph.nodes), 0)?,
            target: Tensor::f_stack(&of(|graph| &graph.target), 0)?,
        }
        .to_any()
    }
}

/// A model that reads the mean of each graph's nodes. It finds the nodes of a graph only by their
/// position in `x`. If a batch were divided and `x` still contained the nodes of all graphs, the
/// means would be wrong, without an error.
#[derive(LightningModule)]
#[batch(Graphs, inputs(x, nodes), target = target)]
#[forward(|x, nodes: &Tensor| {
    if cx.is_training() && x.size()[0] > self.room || nodes.size()[0] > self.most {
        return Err(Error::Torch("CUDA out of memory. Tried to allocate 1.00 GiB".into()));
    }
    let ends = nodes.f_cumsum(0, Kind::Int64)?;
    let sums = Tensor::f_cat(&[&x.f_zeros_like()?.f_narrow(0, 0, 1)?, &x.f_cumsum(0, x.kind())?], 0)?;
    let until = |at: &Tensor| sums.f_index_select(0, at);
    let sum = until(&ends)?.f_sub(&until(&ends.f_sub(nodes)?)?)?;
    head(&sum.f_div(&nodes.f_to_kind(x.kind())?.f_unsqueeze(1)?)?)
})]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 1e-3)]
struct Pooled {
    /// If a training batch has more nodes than this number, the forward pass fails as if memory had
    /// run out.
    #[hparam(default = 1000)]
    room: i64,
    /// If a batch has more graphs than this number, the forward pass fails as if memory had run
    /// out.
    #[hparam(default = 1000)]
    most: i64,
    #[layer(linear(1, 1))]
    head: Linear,
}

fn set(graphs: i64) -> SharedDataset {
    Growing(graphs).shared()
}

fn cpu() -> TrainerConfig {
    TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::F32True, Device::Cpu) }
}

/// Checks that the batches of `head`, a data module with only the first batches, contain all nodes
/// of their graphs.
#[test]
fn the_first_batches_are_whole() -> Result<()> {
    let head = DataModule::new("graphs", set(9), set(3), 2).in_order().head(2)?;
    assert_eq!((head.train.len(), head.val.examples()), (4, 3));
    let loader = head.train_loader(Policy::new(Precision::F32True, Device::Cpu), 0)?;
    let nodes = |batch: Result<AnyBatch>| Ok(values(batch?.required("x")?));
    let batches: Vec<Vec<f64>> = loader.epoch(0, 0)?.map(nodes).collect::<Result<_>>()?;
    assert_eq!(batches, [vec![0.0, 1.0, 1.0], vec![2.0, 2.0, 2.0, 3.0, 3.0, 3.0, 3.0]]);
    Ok(())
}

/// Checks that a data set with rows of all examples in a shared tensor is refused with
/// `placement = device`, which would select the batches from one copy of the whole set.
#[test]
fn one_copy_of_the_set_is_refused() {
    let mut data = DataModule::new("graphs", set(6), set(2), 2);
    data.loading = Loading { placement: Placement::Device, ..Loading::default() };
    let loader = data.train_loader(Policy::new(Precision::F32True, Device::Cpu), 0);
    let told = message(loader.map(drop));
    assert!(told.contains("`placement = device`") && told.contains("`x` of the batch"), "{told}");
    assert!(told.ends_with("choose `auto` or `host`"), "{told}");
}

/// Checks that a batch with rows of all examples in a shared tensor is not divided if it does not
/// fit into memory. The run ends with an error instead.
#[test]
fn a_batch_that_does_not_fit_is_not_divided() -> Result<()> {
    let _section = seeded(0);
    let data = DataModule::new("graphs", set(8), set(2), 4).in_order();
    let mut model = Pooled::builder().room(8).build()?;
    let told = message(Trainer::new(cpu()).fit(&mut model, &data));
    assert!(
        told.contains("does not fit into memory") && told.contains("`x` of the batch"),
        "{told}"
    );
    assert!(told.contains("choose a smaller batch, or a memory budget"), "{told}");
    // A memory budget reduces only the memory of training steps, so the error of a validation does
    // not suggest it.
    let mut model = Pooled::builder().most(1).build()?;
    let told = message(Trainer::new(cpu()).validate(&mut model, &data));
    assert!(
        told.contains("does not fit into memory") && told.contains("`x` of the batch"),
        "{told}"
    );
    assert!(told.ends_with("choose a smaller batch (batch 0 of the validation set)"), "{told}");
    Ok(())
}

/// Returns a batch of graphs that share the same nodes, which it contains only once. Such a batch
/// may be divided.
fn alike(graphs: i64) -> Result<Graphs> {
    Ok(Graphs {
        x: Tensor::f_full([9, 1], 2, (Kind::Float, Device::Cpu))?,
        nodes: Tensor::f_ones([graphs], (Kind::Int64, Device::Cpu))?,
        target: Tensor::f_zeros([graphs, 1], (Kind::Float, Device::Cpu))?,
    })
}

/// Checks that a batch that cannot be divided runs as a whole, even if an earlier batch was
/// divided.
#[test]
fn a_batch_that_fits_is_not_refused_after_another_was_divided() -> Result<()> {
    let data = DataModule::new("graphs", set(4), alike(4)?, 4).with_val("flat", set(2));
    let values = |most: i64| -> Result<Vec<f64>> {
        let _section = seeded(0);
        let mut model = Pooled::builder().most(most).build()?;
        let logged = Trainer::new(cpu()).validate(&mut model, &data)?;
        Ok(logged.iter().map(|logged| logged.value).collect())
    };
    let (whole, divided) = (values(4)?, values(2)?);
    assert_eq!(whole.len(), 2);
    for (whole, divided) in whole.iter().zip(&divided) {
        assert!((whole - divided).abs() < 1e-6, "{divided} instead of {whole}");
    }
    Ok(())
}

/// Checks that a batch may be divided if its shared tensors are known to be the same for all
/// examples. Such a data set may also be stored on the device.
#[rstest]
#[case::in_memory(false)]
#[case::stacked(true)]
fn common_tensors_may_be_divided(#[case] stacked: bool) -> Result<()> {
    struct Alike;
    impl MapDataset for Alike {
        type Example = Graphs;

        fn len(&self) -> i64 {
            4
        }

        fn get(&self, index: i64, _: &mut Rng) -> Result<Graphs> {
            let x = Tensor::f_full([9, 1], 2, (Kind::Float, Device::Cpu))?;
            let target = Tensor::f_from_slice(&[index as f32])?;
            Ok(Graphs { x, nodes: Tensor::from(1_i64), target })
        }
    }
    let set = if stacked { Alike.shared() } else { alike(4)?.into() };
    assert!(set.gather(&[0, 1])?.is_divisible() && set.head(2)?.is_divisible());
    // After a shared tensor is added or replaced, the batch is not divisible, because the tensor
    // may hold rows of all examples.
    let all = Tensor::f_ones([2, 1], (Kind::Float, Device::Cpu))?;
    let (mut added, mut replaced) = (set.head(2)?, set.head(2)?);
    added.push("all", &all, FieldRole::Shared)?;
    replaced.replace("x", &all)?;
    assert!(!added.is_divisible() && !replaced.is_divisible());
    let mut data = DataModule::training("alike", set, 2);
    data.loading.placement = Placement::Device;
    data.train_loader(Policy::new(Precision::F32True, Device::Cpu), 0)?;
    Ok(())
}
