//! Tests of two notes about data: ids that are stored as floating-point numbers and that a 16-bit
//! dtype would round, and a shared tensor that contains indices of examples. Also tests the hint in
//! an error about two dtypes.

use amp_core::{Trainer, TrainerConfig, data::DataModule, prelude::*};
use rstest::rstest;

use crate::support::{message, seeded};

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 1e-9)]
struct Net {
    #[layer(linear(3, 1))]
    head: Linear,
}

/// Trains on examples with three columns (a constant, an id and the number 1) and returns the notes
/// about whole numbers.
fn notes(precision: Precision, ids: [f64; 4], target: [f64; 4]) -> Result<Vec<String>> {
    let _section = seeded(0);
    let row = |id: f64| [0.123_456_7, id, 1.0];
    let input = Tensor::from_slice(&ids.map(row).concat()).to_kind(Kind::Float).reshape([4, 3]);
    let target = Tensor::from_slice(&target).to_kind(Kind::Float).reshape([4, 1]);
    let batch = || Batch::new(input.copy(), target.copy());
    let data = DataModule::new("rows", batch()?, batch()?, 4);
    let config = TrainerConfig { max_epochs: 1, ..TrainerConfig::new(precision, Device::Cpu) };
    let mut net = Net::builder().build()?;
    let record = Trainer::new(config).fit(&mut net, &data)?;
    Ok(record.notes.into_iter().filter(|note| note.contains("whole numbers")).collect())
}

const FRACTIONS: [f64; 4] = [0.1, 0.2, 0.3, 0.4];

#[rstest]
#[case(Precision::Bf16True, [1.0, 256.0, 1001.0, 3.0], "bfloat16 rounds 1001 to 1000")]
#[case(Precision::Bf16True, [257.0, 0.0, 0.0, 0.0], "bfloat16 rounds 257 to 256")]
#[case(Precision::F16True, [2048.0, 2049.0, 1.0, 1.0], "float16 rounds 2049 to 2048")]
fn ids_among_floating_point_values_are_reported(
    #[case] precision: Precision,
    #[case] ids: [f64; 4],
    #[case] expected: &str,
) -> Result<()> {
    let told = notes(precision, ids, FRACTIONS)?;
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("`input` holds whole numbers in column 1, and "), "{}", told[0]);
    assert!(told[0].contains(expected) && told[0].contains("#[batch(ids)]"), "{}", told[0]);
    Ok(())
}

#[rstest]
#[case::they_fit(Precision::Bf16True, [1.0, 2.0, 255.0, 256.0])]
#[case::they_fit_f16(Precision::F16True, [1.0, 1001.0, 2047.0, 2048.0])]
#[case::fractions_too(Precision::Bf16True, [1001.0, 2.5, 3.0, 4.0])]
#[case::not_cast(Precision::Bf16Mixed, [1001.0, 1003.0, 3.0, 4.0])]
#[case::wide(Precision::F32True, [1001.0, 1003.0, 3.0, 4.0])]
fn other_values_are_not_reported(
    #[case] precision: Precision,
    #[case] ids: [f64; 4],
) -> Result<()> {
    assert_eq!(notes(precision, ids, FRACTIONS)?, [""; 0]);
    Ok(())
}

#[test]
fn targets_are_checked_too() -> Result<()> {
    let told = notes(Precision::Bf16True, [1.0; 4], [1.0, 2.0, 511.0, 4.0])?;
    assert!(told.len() == 1 && told[0].starts_with("`target` holds whole numbers in column 0"));
    Ok(())
}

/// A graph. Each node is an example, and all examples share the edges.
#[derive(Batch)]
struct Graph {
    x: Tensor,
    #[batch(shared)]
    edges: Tensor,
    target: Tensor,
}

#[derive(LightningModule)]
#[batch(Graph, inputs(x, edges))]
#[forward(|x, edges: &Tensor| {
    let messages = x.f_index_select(0, &edges.f_get(0)?.f_remainder(2)?)?;
    head(&x.f_add(&messages.f_mean(x.kind())?)?)
})]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 1e-9)]
struct GraphNet {
    #[layer(linear(3, 1))]
    head: Linear,
}

fn graph(nodes: i64, edges: &[i64]) -> Result<Graph> {
    let options = (Kind::Float, Device::Cpu);
    let edges = Tensor::f_from_slice(edges)?.f_view([2, -1])?;
    Ok(Graph {
        x: Tensor::f_randn([nodes, 3], options)?,
        edges,
        target: Tensor::f_zeros([nodes, 1], options)?,
    })
}

/// Checks that a note warns about edges that contain indices of examples if the examples are
/// shuffled or if a batch has only some of them. Checks that there is no note if one batch has all
/// examples in order, or if the numbers in the edges cannot be such indices.
#[rstest]
#[case::shuffled(6, false, &[0, 1, 2, 3, 4, 5, 0, 2], Some("because the examples are shuffled"))]
#[case::in_order(6, true, &[0, 1, 2, 3, 4, 5, 0, 2], None)]
#[case::in_batches(3, true, &[0, 1, 2, 3, 4, 5, 0, 2], Some("each batch has only some of the examples"))]
#[case::few_numbers(6, false, &[0, 1, 2, 3], None)]
#[case::other_numbers(6, false, &[0, 1, 2, 3, 4, 5, 9, 2], None)]
fn shared_numbers_of_examples_are_reported(
    #[case] batch: i64,
    #[case] in_order: bool,
    #[case] edges: &[i64],
    #[case] expected: Option<&str>,
) -> Result<()> {
    let _section = seeded(0);
    let data = DataModule::new("graph", graph(6, edges)?, graph(6, edges)?, batch);
    let data = if in_order { data.in_order() } else { data };
    let config =
        TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::F32True, Device::Cpu) };
    let record = Trainer::new(config).fit(&mut GraphNet::builder().build()?, &data)?;
    let notes: Vec<&String> =
        record.notes.iter().filter(|note| note.contains("shared tensor `edges`")).collect();
    assert_eq!(notes.len(), usize::from(expected.is_some()), "{:?}", record.notes);
    for (note, expected) in notes.iter().zip(expected) {
        assert!(note.contains("up to 5") && note.contains(expected), "{note}");
    }
    Ok(())
}

/// A model that adds an f32 tensor of its own to a layer's output.
#[derive(LightningModule)]
#[forward(|x| {
    let x = body(x)?;
    head(&x.f_add(&Tensor::f_ones([4], (Kind::Float, x.device()))?)?)
})]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Widening {
    #[layer(linear(3, 4))]
    body: Linear,
    #[layer(linear(4, 1))]
    head: Linear,
}

/// Checks the error for an operation whose operands have two dtypes: it names the layer and says
/// how to give both operands the same dtype.
#[test]
fn an_error_of_dtypes_has_a_hint() -> Result<()> {
    let _section = seeded(0);
    let part = || {
        let options = (Kind::Float, Device::Cpu);
        Batch::new(Tensor::f_randn([4, 3], options)?, Tensor::f_zeros([4, 1], options)?)
    };
    let data = DataModule::new("rows", part()?, part()?, 4);
    let config =
        TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::F16True, Device::Cpu) };
    let error = message(Trainer::new(config).fit(&mut Widening::builder().build()?, &data));
    assert!(error.starts_with("in `head`: libtorch: ") && error.contains("same dtype"), "{error}");
    assert!(
        error.ends_with(
            "; under 16-true give each tensor that you create the dtype of the tensor that you combine it with, as in `.f_to_kind(x.kind())`: an operation on tensors of two dtypes returns the wider dtype"
        ),
        "{error}"
    );
    Ok(())
}
