//! Tests of `derive(Batch)`, and of models with a batch type of their own.

use amp_core::{
    Hyperparameters, Trainer, TrainerConfig,
    data::{AnyBatch, BatchField, BatchType, DataModule, FieldRole},
    event::Event,
    log::Log,
    nn::{self, Context},
    precision::Policy,
    prelude::*,
};
use rstest::rstest;

use crate::support::{message, seeded};

/// Token ids with an optional mask.
#[derive(Debug, Batch)]
struct Source {
    #[batch(ids)]
    ids: Tensor,
    #[batch(mask)]
    mask: Option<Tensor>,
}

#[derive(Debug, Batch)]
struct Sentences {
    source: Source,
    extra: Vec<Tensor>,
    #[batch(weights)]
    weights: Option<Tensor>,
    #[batch(shared)]
    scale: Tensor,
    labels: Tensor,
}

fn floats(shape: &[i64]) -> Tensor {
    Tensor::ones(shape, (Kind::Float, Device::Cpu))
}

fn sentences(count: i64) -> Sentences {
    let ids =
        Tensor::arange(count * 3, (Kind::Int64, Device::Cpu)).remainder(7).reshape([count, 3]);
    let labels = ids.select(1, 0).remainder(2);
    let mask = ids.not_equal(6);
    Sentences {
        source: Source { ids, mask: Some(mask) },
        extra: vec![floats(&[count, 2]), floats(&[count])],
        weights: None,
        scale: floats(&[1]) * 2.0,
        labels,
    }
}

/// A derived batch is split into named tensors in the order of its fields, and assembled again.
/// When a batch is placed on a device, values and shared tensors are cast to the run's dtype, but
/// ids and masks are not.
#[test]
fn fields_are_placed_by_their_roles() -> Result<()> {
    let batch = sentences(4).to_any()?;
    let names: Vec<&str> = batch.tensors().map(|(name, _)| name).collect();
    assert_eq!(names, ["source.ids", "source.mask", "extra.0", "extra.1", "scale", "labels"]);
    let placed = batch.place(Policy::new(Precision::F64True, Device::Cpu))?;
    let kinds: Vec<Kind> = placed.tensors().map(|(_, tensor)| tensor.kind()).collect();
    let (ids, mask, value) = (Kind::Int64, Kind::Bool, Kind::Double);
    assert_eq!(kinds, [ids, mask, value, value, value, ids]);
    let part = Sentences::from_any(&placed.narrow(1, 2)?)?;
    assert_eq!((part.source.ids.size(), part.scale.size()), (vec![2, 3], vec![1]));
    assert_eq!((part.extra.len(), part.weights.is_none()), (2, true));
    let none = Source { mask: None, ..sentences(2).source };
    assert!(Source::from_any(&none.to_any()?)?.mask.is_none());
    Ok(())
}

#[test]
fn wrong_fields_are_refused() -> Result<()> {
    let float_ids = Source { ids: floats(&[2, 3]), mask: None };
    let error = message(float_ids.to_any());
    assert!(error.contains("`ids` is Float"), "{error}");
    let unequal = Sentences { labels: floats(&[3]), ..sentences(4) };
    let error = message(unequal.to_any());
    assert!(error.contains("but 3 in `labels`"), "{error}");
    let error = message(Sentences::from_any(&sentences(2).source.to_any()?));
    assert!(error.contains("source.ids"), "{error}");
    Ok(())
}

/// `each` applies a function to every tensor of a batch. A precision region uses `each` to cast the
/// fields.
#[test]
fn a_region_casts_the_fields_of_a_batch() -> Result<()> {
    use amp_core::nn::Tensors;
    let batch = sentences(2);
    let mut kinds = Vec::new();
    let doubled = batch.each(&mut |tensor| {
        kinds.push(tensor.kind());
        Ok(tensor.f_add(tensor)?)
    });
    assert_eq!(kinds.len(), 6);
    assert_eq!(doubled?.scale.double_value(&[0]), 4.0);
    Ok(())
}

/// A module that returns the mean of the unmasked embeddings.
#[derive(Module)]
#[forward(|ids: &Tensor, mask: Option<&Tensor>| {
    let x = table(ids)?;
    match mask {
        Some(mask) => {
            let mask = mask.f_unsqueeze(-1)?.f_to_kind(x.kind())?;
            let count = mask.f_sum_dim_intlist([1].as_slice(), false, x.kind())?;
            let sum = x.f_mul(&mask)?.f_sum_dim_intlist([1].as_slice(), false, x.kind())?;
            Ok(sum.f_div(&count)?)
        }
        None => Ok(x.f_mean_dim([1].as_slice(), false, x.kind())?),
    }
})]
struct Encoder {
    #[layer(embedding(7, 4))]
    table: Embedding,
}

/// A model whose batches have two inputs and a target. One of the inputs is optional, and the
/// target is called `labels`.
#[derive(LightningModule)]
#[batch(Sentences, inputs(source.ids, source.mask), target = labels)]
#[forward(|ids, mask: Option<&Tensor>| head(&encoder(ids, mask)?))]
#[loss(cross_entropy)]
#[metric(accuracy, name = acc)]
#[optimizer(adamw, lr = 0.1)]
struct Classifier {
    #[layer(Encoder::builder().build()?)]
    encoder: Encoder,
    #[layer(linear(4, 2))]
    head: Linear,
}

/// A model with two outputs. Its loss reads the whole batch. Its metric reads one of the outputs
/// and one field of the batch.
#[derive(LightningModule)]
#[batch(Sentences, inputs(batch), target = batch)]
#[forward(|batch: &Sentences| -> Result<(Tensor, Tensor)> {
    let hidden = self.encoder.forward(&batch.source.ids, batch.source.mask.as_ref(), cx)?;
    Ok((head(&hidden)?, hidden))
})]
#[loss(with = |output, batch| {
    let (logits, hidden) = output;
    let loss = loss::cross_entropy(logits, &batch.labels)?.f_mul(&batch.scale.f_sum(Kind::Float)?)?;
    Ok(loss.f_add(&hidden.f_square()?.f_mean(Kind::Float)?.f_mul_scalar(1e-3)?)?)
})]
#[metric(accuracy, output = output.0, target = labels, name = acc)]
#[optimizer(adamw, lr = 0.1)]
struct Whole {
    #[layer(Encoder::builder().build()?)]
    encoder: Encoder,
    #[layer(linear(4, 2))]
    head: Linear,
}

/// A model that defines its training step and its type of batch itself.
#[derive(LightningModule)]
#[batch(Sentences, inputs(source.ids), target = labels)]
#[training_step(Self::own)]
#[forward(|ids| head(&table(ids)?.f_mean_dim([1].as_slice(), false, Kind::Float)?))]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 0.1)]
struct Own {
    #[layer(embedding(7, 4))]
    table: Embedding,
    #[layer(linear(4, 2))]
    head: Linear,
}

impl Own {
    fn own(&mut self, batch: &Sentences, step: &mut Step<'_>) -> Result<Tensor> {
        let output = self.forward(&batch.source.ids, step.context())?;
        let loss = loss::cross_entropy(&output, &batch.labels)?;
        step.log("train_loss", &loss, batch.labels.size()[0], LogOptions::ON_STEP)?;
        Ok(loss)
    }
}

fn losses(model: &mut dyn LightningModule, precision: Precision) -> Result<Vec<f64>> {
    let mut losses = Vec::new();
    let mut listen = |event: &Event| -> Result<()> {
        if let Event::EpochEnd(epoch) = event {
            losses.extend(epoch.value("val_loss"));
        }
        Ok(())
    };
    let data = DataModule::new("sentences", sentences(8), sentences(8), 4);
    let config = TrainerConfig { max_epochs: 8, ..TrainerConfig::new(precision, Device::Cpu) };
    Trainer::new(config).subscribe(&mut listen).fit(model, &data)?;
    Ok(losses)
}

#[rstest]
#[case::mixed(Precision::Bf16Mixed)]
#[case::half(Precision::F16Mixed)]
#[case::plain(Precision::F32True)]
fn models_train_on_their_own_types_of_batch(#[case] precision: Precision) -> Result<()> {
    let _generator = seeded(0);
    let models: [Box<dyn LightningModule>; 3] = [
        Box::new(Classifier::builder().build()?),
        Box::new(Whole::builder().build()?),
        Box::new(Own::builder().build()?),
    ];
    for mut model in models {
        let name = model.name();
        let losses = losses(model.as_mut(), precision)?;
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < 0.8 * first, "{name}: {losses:?}");
    }
    Ok(())
}

/// Predictions need no target, and are named after their positions in the output.
#[test]
fn predictions_need_no_target() -> Result<()> {
    let _generator = seeded(0);
    let mut model = Classifier::builder().build()?;
    let context = Context::new(Policy::new(Precision::F32True, Device::Cpu), false);
    let mut log = Log::default();
    let mut batch = AnyBatch::new("Unlabelled");
    sentences(3).source.put("source".into(), FieldRole::Value, &mut batch)?;
    let predicted = model.predict_step(&batch, &mut Step::new(&context, &mut log, 0, 0))?;
    assert_eq!(predicted.required("output")?.size(), [3, 2]);

    let mut whole = Whole::builder().build()?;
    nn::place(&whole, context.policy(), &Default::default())?;
    let batch = sentences(3).to_any()?;
    let predicted = whole.predict_step(&batch, &mut Step::new(&context, &mut log, 0, 0))?;
    let names: Vec<&str> = predicted.tensors().map(|(name, _)| name).collect();
    assert_eq!(names, ["output.0", "output.1"]);
    assert_eq!(whole.hyperparameters(), Hyperparameters::new());
    Ok(())
}

/// A model whose forward pass also returns one number for the whole batch.
#[derive(LightningModule)]
#[forward(|input| -> Result<(Tensor, Tensor)> {
    let output = head(input)?;
    let mean = output.f_mean(output.kind())?;
    Ok((output, mean))
})]
#[loss(with = |output, target| loss::mse_loss(&output.0, target), of = examples)]
#[optimizer(sgd, lr = 0.1)]
struct WithMean {
    #[layer(linear(2, 1))]
    head: Linear,
}

/// Checks that a prediction is refused if its output has no row for each example. The error names
/// the remedy.
#[test]
fn predictions_have_a_row_for_each_example() -> Result<()> {
    let _section = seeded(0);
    let options = (Kind::Float, Device::Cpu);
    let set = || Batch::new(Tensor::f_ones([4, 2], options)?, Tensor::f_ones([4, 1], options)?);
    let data = DataModule::training("rows", set()?, 4).with_predict(set()?);
    let mut trainer = Trainer::new(TrainerConfig::new(Precision::F32True, Device::Cpu));
    let mut model = WithMean::builder().build()?;
    let told = message(trainer.predict(&mut model, &data, &mut |_, _, _| Ok(())));
    assert!(told.contains("`output.1` is a scalar"), "{told}");
    assert!(told.contains("write a `#[predict_step]` that returns only tensors"), "{told}");
    Ok(())
}
