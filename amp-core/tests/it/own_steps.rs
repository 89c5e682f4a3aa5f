//! Tests of training, test and prediction steps that the user has written for a derived model.

use amp_core::{Trainer, TrainerConfig, event::Event, nn, prelude::*};
use rstest::rstest;

use crate::support::{bits::values, message, seeded};

/// A batch of sentences: the ids of their words, and for each word the id of the next word. The
/// padding has the id 0.
#[derive(Batch)]
struct Sentences {
    #[batch(ids)]
    words: Tensor,
    #[batch(ids)]
    next: Tensor,
}

/// The batch of a prediction step, which contains the words, but not the next words.
#[derive(Batch)]
struct Beginnings {
    #[batch(ids)]
    words: Tensor,
}

/// Computes the loss, a mean over the words that are not padding.
fn of_words(logits: &Tensor, next: &Tensor) -> Result<Tensor> {
    use loss::{CrossEntropy, Loss};
    CrossEntropy { ignore_index: 0, ..CrossEntropy::default() }.compute(logits, next)
}

fn count_words(batch: &Sentences) -> Result<Tensor> {
    Ok(batch.next.f_not_equal(0)?.f_sum(Kind::Double)?)
}

/// Defines a model whose training step is `$step`. The models differ only in how they declare the
/// weight that a batch has among accumulated batches.
macro_rules! words {
    ($name:ident, #[$step:meta]) => {
        #[derive(LightningModule)]
        #[batch(Sentences, inputs(words), target = next)]
        #[loss(cross_entropy, ignore_index = 0)]
        #[$step]
        #[test_step(Self::test)]
        #[predict_step(Self::most_likely)]
        #[optimizer(sgd, lr = 0.5)]
        struct $name {
            #[layer(embedding(7, 4))]
            table: Embedding,
            #[layer(linear(4, 7))]
            head: Linear,
        }

        #[allow(dead_code)]
        impl $name {
            fn step(&mut self, batch: &Sentences, step: &mut Step<'_>) -> Result<Tensor> {
                let loss = of_words(&self.forward(&batch.words, step.context())?, &batch.next)?;
                step.log("train_loss", &loss, batch.words.size()[0], LogOptions::ON_STEP)?;
                Ok(loss)
            }

            fn test(&mut self, batch: &Sentences, step: &mut Step<'_>) -> Result<()> {
                let logits = self.forward(&batch.words, step.context())?;
                let right = logits.f_argmax(-1, false)?.f_eq_tensor(&batch.next)?;
                let right = right.f_to_kind(Kind::Double)?.f_mean(Kind::Double)?;
                step.log("test_right", &right, batch.words.size()[0], LogOptions::ON_EPOCH)
            }

            fn most_likely(
                &mut self,
                batch: &Beginnings,
                step: &mut Step<'_>,
            ) -> Result<(Tensor, Tensor)> {
                let logits = self.forward(&batch.words, step.context())?;
                let (logits, ids) = logits.f_max_dim(-1, false)?;
                Ok((ids, logits))
            }
        }
    };
}

words!(ByFunction, #[training_step(Self::step, counts = count_words)]);
words!(ByClosure, #[training_step(
    Self::step,
    counts = |batch| Ok(batch.next.f_not_equal(0)?.f_sum(Kind::Double)?),
    captured
)]);
words!(OfExamples, #[training_step(Self::step, of = examples)]);
words!(Undeclared, #[training_step(Self::step)]);
words!(OfTheBatch, #[training_step(Self::step, of = batch)]);

/// Returns six sentences, with between one and three words.
fn sentences() -> Sentences {
    let words = [[1_i64, 2, 3], [4, 0, 0], [5, 6, 0], [2, 2, 2], [3, 0, 0], [6, 1, 0]];
    let words = Tensor::from_slice2(&words);
    let next = words.f_add_scalar(1).and_then(|next| next.f_remainder(7));
    let next = next.and_then(|next| next.f_mul(&words.f_not_equal(0)?)).expect("it is small");
    Sentences { words, next }
}

struct Ran {
    weights: Vec<f64>,
    notes: Vec<String>,
}

fn train(build: fn() -> Result<Box<dyn LightningModule>>, batch: i64) -> Result<Ran> {
    let mut model = {
        let _section = seeded(5);
        build()?
    };
    let mut notes = Vec::new();
    let mut listen = |event: &Event| -> Result<()> {
        if let Event::Note { text } = event {
            notes.push(text.clone());
        }
        Ok(())
    };
    let data = DataModule::training("sentences", sentences(), batch).in_order();
    let config = TrainerConfig::new(Precision::F64True, Device::Cpu).with(|config| {
        config.max_epochs = 1;
        config.optimization.accumulate_grad_batches = 6 / batch;
    });
    Trainer::new(config).subscribe(&mut listen).fit(model.as_mut(), &data)?;
    let own = nn::parameters(model.as_ref());
    let weights = own.iter().flat_map(|own| values(&own.tensor)).collect();
    Ok(Ran { weights, notes })
}

fn by_function() -> Result<Box<dyn LightningModule>> {
    Ok(Box::new(ByFunction::builder().build()?))
}

fn by_closure() -> Result<Box<dyn LightningModule>> {
    Ok(Box::new(ByClosure::builder().build()?))
}

fn of_examples() -> Result<Box<dyn LightningModule>> {
    Ok(Box::new(OfExamples::builder().build()?))
}

fn undeclared() -> Result<Box<dyn LightningModule>> {
    Ok(Box::new(Undeclared::builder().build()?))
}

fn of_the_batch() -> Result<Box<dyn LightningModule>> {
    Ok(Box::new(OfTheBatch::builder().build()?))
}

fn distance(left: &Ran, right: &Ran) -> f64 {
    let pairs = left.weights.iter().zip(&right.weights);
    pairs.map(|(left, right)| (left - right).abs()).fold(0.0, f64::max)
}

/// transformers#24725, in a step that the user has written: if the step declares how many words its
/// loss averages over, a step on accumulated batches equals a step on one large batch.
#[rstest]
fn a_declared_weight_counts_in_a_window(
    #[values(by_function, by_closure)] build: fn() -> Result<Box<dyn LightningModule>>,
    #[values(1, 2, 3)] batch: i64,
) -> Result<()> {
    let (whole, parts) = (train(build, 6)?, train(build, batch)?);
    assert!(distance(&whole, &parts) < 1e-14, "{}", distance(&whole, &parts));
    assert_eq!(parts.notes, [""; 0]);
    Ok(())
}

#[test]
fn a_step_without_a_declaration_is_noted() -> Result<()> {
    let (whole, parts) = (train(undeclared, 6)?, train(undeclared, 2)?);
    assert!(distance(&whole, &parts) > 1e-3, "{}", distance(&whole, &parts));
    assert_eq!(whole.notes, [""; 0]);
    let [note] = parts.notes.as_slice() else { panic!("{:?}", parts.notes) };
    assert!(note.contains("declare `of = examples` if the loss is a mean over examples"), "{note}");
    let [note] = &train(of_the_batch, 2)?.notes[..] else { panic!("a note is missing") };
    assert!(note.contains("the loss depends on each batch as a whole"), "{note}");
    assert_eq!(train(of_examples, 2)?.notes, [""; 0]);
    Ok(())
}

#[test]
fn own_test_and_prediction_steps_run() -> Result<()> {
    let mut model = ByFunction::builder().build()?;
    let data = DataModule::training("sentences", sentences(), 6)
        .with_test(sentences())
        .with_predict(Beginnings { words: sentences().words });
    let config = || TrainerConfig::new(Precision::F32True, Device::Cpu);
    let tested = Trainer::new(config()).test(&mut model, &data)?;
    let named = |name: &str| tested.iter().any(|value| value.name == name);
    assert!(named("test_right") && !named("test_loss"), "{tested:?}");
    let mut predicted = Vec::new();
    let mut keep = |_: &str, _: usize, batch: &AnyBatch| -> Result<()> {
        predicted.push((
            batch.required("output.0")?.shallow_clone(),
            batch.required("output.1")?.shallow_clone(),
        ));
        Ok(())
    };
    Trainer::new(config()).predict(&mut model, &data, &mut keep)?;
    let logits = model.forward(
        &sentences().words,
        &nn::Context::new(amp_core::precision::Policy::new(Precision::F32True, Device::Cpu), false),
    )?;
    let (best, ids) = logits.f_max_dim(-1, false)?;
    assert_eq!(predicted, [(ids, best)]);
    Ok(())
}

/// A model with its own validation step. The derive macro generates no test step for it.
#[derive(LightningModule)]
#[training_step(Self::step)]
#[validation_step(Self::check)]
#[optimizer(sgd, lr = 0.5)]
struct WithoutTest {
    #[layer(linear(4, 3))]
    head: Linear,
}

impl WithoutTest {
    fn step(&mut self, batch: &Batch, step: &mut Step<'_>) -> Result<Tensor> {
        loss::mse_loss(&self.forward(&batch.input, step.context())?, &batch.target)
    }

    fn check(&mut self, _: &Batch, _: &mut Step<'_>) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_missing_test_step_is_named_with_its_attribute() -> Result<()> {
    let zeros = |size: [i64; 2]| Tensor::f_zeros(size, (Kind::Float, Device::Cpu));
    let batch = || Batch::new(zeros([2, 4])?, zeros([2, 3])?);
    let data = DataModule::training("zeros", batch()?, 2).with_test(batch()?);
    let config = TrainerConfig::new(Precision::F32True, Device::Cpu);
    let mut model = WithoutTest::builder().build()?;
    let said = message(Trainer::new(config).test(&mut model, &data));
    assert!(said.contains("in a derived model with `#[test_step(…)]`"), "{said}");
    Ok(())
}

/// Defines a model whose training step is `$step`.
macro_rules! scaled {
    ($name:ident, $step:expr) => {
        #[derive(LightningModule)]
        #[forward(|x| head(x))]
        #[loss(mse_loss)]
        #[training_step($step)]
        #[optimizer(sgd, lr = 0.1)]
        struct $name {
            #[layer(linear(4, 1))]
            head: Linear,
            #[layer(linear(4, 1))]
            forgotten: Linear,
        }

        #[allow(dead_code)]
        impl $name {
            fn loss(&mut self, batch: &Batch, step: &mut Step<'_>) -> Result<Tensor> {
                loss::mse_loss(&self.forward(&batch.input, step.context())?, &batch.target)
            }

            fn backward(&mut self, batch: &Batch, step: &mut Step<'_>) -> Result<Tensor> {
                self.loss(batch, step)?.f_backward()?;
                self.loss(batch, step)
            }

            fn numbers(&mut self, batch: &Batch, step: &mut Step<'_>) -> Result<Tensor> {
                let loss = self.loss(batch, step)?;
                let mask = Tensor::f_ones([3], (Kind::Bool, loss.device()))?;
                Ok(batch.input.f_masked_fill(&mask, 0.0)?.f_sum(Kind::Float)?.f_add(&loss)?)
            }
        }
    };
}

scaled!(Returns, Self::loss);
scaled!(Backward, Self::backward);
scaled!(Numbers, Self::numbers);

fn fit_once(model: &mut dyn amp_core::LightningModule) -> Result<amp_core::record::RunRecord> {
    let x = Tensor::f_arange(32, (Kind::Float, Device::Cpu))?.f_view([8, 4])?.f_sin()?;
    let batch = || Batch::new(x.shallow_clone(), x.f_sum_dim_intlist(1, true, Kind::Float)?);
    let data = DataModule::new("sums", batch()?, batch()?, 4);
    let config = TrainerConfig::new(Precision::F32True, Device::Cpu).with(|config| {
        config.max_epochs = 1;
        config.checks.shared_examples = true;
    });
    Trainer::new(config).fit(model, &data)
}

/// Checks that a step that runs the backward pass itself is refused, because the trainer would add
/// the gradients of its own backward pass.
#[test]
fn a_step_with_a_backward_pass_is_refused() -> Result<()> {
    let _generator = seeded(3);
    let said = message(fit_once(&mut Backward::builder().build()?));
    assert!(said.contains("`training_step` has run a backward pass: `head.weight`"), "{said}");
    Ok(())
}

/// Checks that a note names the parameters on which the loss does not depend.
#[test]
fn a_note_names_parameters_without_gradient() -> Result<()> {
    let _generator = seeded(3);
    let notes = fit_once(&mut Returns::builder().build()?)?.notes;
    let [note] = notes.as_slice() else { panic!("{notes:?}") };
    assert!(note.contains("no gradient to `forgotten.weight`, `forgotten.bias`"), "{note}");
    Ok(())
}

/// Checks that a failing operator with a number ends the run with an error and not with a panic.
#[test]
fn a_failing_operator_with_a_number_is_an_error() -> Result<()> {
    let _generator = seeded(3);
    let said = message(fit_once(&mut Numbers::builder().build()?));
    assert!(said.contains("The size of tensor a (3) must match"), "{said}");
    Ok(())
}
