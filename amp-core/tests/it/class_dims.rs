//! Tests of logits whose shape can be read in two ways: in logits `[N, 5, 5]` for targets `[N, 5]`,
//! the classes may be the second or the last dimension. `ignore_index` is 0, which is also a class,
//! instead of -100. To compute the expected values, the tests drop the rows with an ignored target
//! and give libtorch logits `[M, 5]`.

use amp_core::{
    Trainer, TrainerConfig,
    loss::{ClassDim, CrossEntropy, Loss, Nll},
    metric::{Accuracy, Metric, ReadAs},
    nn,
    prelude::*,
};
use rstest::rstest;

use crate::support::{message, seeded};

/// The number of classes, and the length of the sequences.
const COUNT: i64 = 5;

/// Returns twelve sequences `[12, 5, 4]` of inputs, and their classes `[12, 5]`. The loss ignores
/// the target 0, as if it were padding. As 0 is also a class, a metric that does not ignore it
/// gives another result.
fn examples() -> Result<Batch> {
    let _section = seeded(3);
    let input = Tensor::f_randn([12, COUNT, 4], (Kind::Double, Device::Cpu))?;
    Batch::new(input, Tensor::f_randint(COUNT, [12, COUNT], (Kind::Int64, Device::Cpu))?)
}

/// Defines a model with this loss, metrics and forward pass. Its inputs have the shape `[N, 5, 4]`.
macro_rules! model {
    ($name:ident, [$($attribute:meta),*], $field:ident: $ty:ty = $layer:expr) => {
        #[derive(LightningModule)]
        $(#[$attribute])*
        #[optimizer(sgd, lr = 0.1)]
        struct $name {
            #[layer($layer)]
            $field: $ty,
        }
    };
}

model!(InOrder, [loss(cross_entropy, ignore_index = 0), metric(accuracy, name = acc)],
    head: Linear = linear(4, COUNT));
// Here the loss gets all logits. It cannot compute them in parts from the inputs of the output
// layer, because AUROC needs all of them.
model!(Called, [
    forward(|x| head(x)),
    loss(cross_entropy, ignore_index = 0),
    metric(accuracy, name = acc),
    metric(auroc)
], head: Linear = linear(4, COUNT));
model!(Function, [
    forward(|x| nn::linear(x, self.head.weight(), None)),
    loss(cross_entropy, ignore_index = 0),
    metric(accuracy, name = acc)
], head: Linear = linear(4, COUNT, bias = false));
model!(Ends, [loss(cross_entropy, ignore_index = 0), metric(accuracy, name = acc)],
    head: Sequential = sequential(identity, linear(4, COUNT)));
model!(Weighted, [loss(cross_entropy, ignore_index = 0, weight = Tensor::ones([COUNT], (Kind::Double, Device::Cpu))),
    metric(accuracy, name = acc)], head: Linear = linear(4, COUNT));
model!(Declared, [
    forward(|x| Ok(head(x)?.f_mul_scalar(1.0)?)),
    loss(cross_entropy, ignore_index = 0, classes = last),
    metric(accuracy, name = acc)
], head: Linear = linear(4, COUNT));
model!(Second, [
    forward(|x| Ok(head(x)?.f_transpose(1, 2)?)),
    loss(cross_entropy, ignore_index = 0, classes = second),
    metric(accuracy, name = acc)
], head: Linear = linear(4, COUNT));
model!(LogProbabilities, [
    forward(|x| Ok(head(x)?.f_log_softmax(-1, Kind::Double)?)),
    loss(nll_loss, ignore_index = 0, classes = last),
    metric(accuracy, name = acc)
], head: Linear = linear(4, COUNT));

/// A model with a convolution, which reads inputs `[N, 5, 4]` as sequences of five steps.
#[derive(LightningModule)]
#[forward(|x| head(&x.f_transpose(1, 2)?))]
#[loss(cross_entropy, ignore_index = 0)]
#[metric(accuracy, name = acc)]
#[optimizer(sgd, lr = 0.1)]
struct Convolved {
    #[layer(conv1d(4, COUNT, 1))]
    head: Conv1d,
}

/// Returns the loss and the accuracy that the model logs in validation.
fn logged(model: &mut dyn LightningModule, batch: &Batch) -> Result<[f64; 2]> {
    let set = || Batch::new(batch.input.shallow_clone(), batch.target.shallow_clone());
    let data = DataModule::new("words", set()?, set()?, 12);
    let config = TrainerConfig::new(Precision::F64True, Device::Cpu);
    let values = Trainer::new(config).validate(model, &data)?;
    Ok(["val_loss", "val_acc"]
        .map(|name| values.iter().find(|value| value.name == name).expect("it is logged").value))
}

/// Computes the logits `[12, 5, 5]` with libtorch.
fn logits(model: &dyn LightningModule, batch: &Batch) -> Tensor {
    let parameters = nn::parameters(model);
    let weight = parameters[0].tensor.detach().to_kind(Kind::Double).reshape([COUNT, 4]);
    let logits = batch.input.matmul(&weight.transpose(0, 1));
    match parameters.get(1) {
        Some(bias) => logits + bias.tensor.detach(),
        None => logits,
    }
}

/// Computes loss and accuracy with libtorch, from the rows whose target is not 0.
fn expected(model: &dyn LightningModule, batch: &Batch) -> [f64; 2] {
    let (logits, of) = (logits(model, batch).reshape([-1, COUNT]), batch.target.reshape([-1]));
    let kept = of.ne(0).nonzero().squeeze_dim(1);
    let (logits, of) = (logits.index_select(0, &kept), of.index_select(0, &kept));
    let loss = logits.cross_entropy_loss::<Tensor>(&of, None, tch::Reduction::Mean, -100, 0.0);
    let accuracy = logits.argmax(1, false).eq_tensor(&of).to_kind(Kind::Double).mean(Kind::Double);
    [loss.double_value(&[]), accuracy.double_value(&[])]
}

#[rstest]
#[case::in_order(InOrder::builder().build().map(boxed))]
#[case::called(Called::builder().build().map(boxed))]
#[case::function(Function::builder().build().map(boxed))]
#[case::ends(Ends::builder().build().map(boxed))]
#[case::weighted(Weighted::builder().build().map(boxed))]
#[case::declared(Declared::builder().build().map(boxed))]
#[case::second(Second::builder().build().map(boxed))]
#[case::log_probabilities(LogProbabilities::builder().build().map(boxed))]
#[case::convolved(Convolved::builder().build().map(boxed))]
fn a_model_of_either_shape_has_libtorchs_values(
    #[case] model: Result<Box<dyn LightningModule>>,
) -> Result<()> {
    let (mut model, batch) = (model?, examples()?);
    let seen = logged(model.as_mut(), &batch)?;
    for (seen, expected) in seen.into_iter().zip(expected(model.as_ref(), &batch)) {
        assert!((seen - expected).abs() < 1e-12, "{seen}, not {expected}");
    }
    Ok(())
}

fn boxed(model: impl LightningModule + 'static) -> Box<dyn LightningModule> {
    Box::new(model)
}

#[derive(LightningModule)]
#[forward(|x| Ok(head(x)?.f_mul_scalar(1.0)?))]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct Undeclared {
    #[layer(linear(4, COUNT))]
    head: Linear,
}

#[test]
fn an_output_of_other_code_is_refused() -> Result<()> {
    let mut model = Undeclared::builder().build()?;
    let said = message(logged(&mut model, &examples()?));
    assert!(said.contains("[12, 5, 5]") && said.contains("`classes = last`"), "{said}");
    Ok(())
}

#[derive(LightningModule)]
#[loss(cross_entropy, ignore_index = 0)]
#[metric(accuracy, name = acc, ignore_index = -100)]
#[optimizer(sgd, lr = 0.1)]
struct Counted {
    #[layer(linear(4, COUNT))]
    head: Linear,
}

/// A metric may count targets that the loss ignores.
#[test]
fn a_metric_keeps_its_own_ignored_class() -> Result<()> {
    let (mut model, batch) = (Counted::builder().build()?, examples()?);
    let [_, accuracy] = logged(&mut model, &batch)?;
    let correct = logits(&model, &batch).argmax(-1, false).eq_tensor(&batch.target);
    assert!(
        (accuracy - correct.to_kind(Kind::Double).mean(Kind::Double).double_value(&[])).abs()
            < 1e-12
    );
    Ok(())
}

/// If the model or the loss declares which dimension has the classes, the second or the last, the
/// loss, the gradient and the accuracy equal those that libtorch computes for logits `[N, C, …]`.
#[rstest]
#[case::sequences(&[4, 3, 3])]
#[case::images(&[2, 3, 3, 3])]
#[case::one_reading(&[4, 3, 7])]
fn both_readings_equal_libtorchs(#[case] sizes: &[i64]) -> Result<()> {
    let _section = seeded(5);
    let second = Tensor::randn(sizes, (Kind::Double, Device::Cpu)).set_requires_grad(true);
    let of_target = [&sizes[..1], &sizes[2..]].concat();
    let target = Tensor::randint(3, of_target, (Kind::Int64, Device::Cpu));
    let expected = second.cross_entropy_loss::<Tensor>(&target, None, tch::Reduction::Mean, 1, 0.1);
    let gradient = Tensor::run_backward(&[&expected], &[&second], true, false).remove(0);
    let counted = second.argmax(1, false).eq_tensor(&target).logical_and(&target.ne(1));
    let accuracy = counted.to_kind(Kind::Double).sum(Kind::Double) / target.ne(1).sum(Kind::Double);
    for classes in [ClassDim::Second, ClassDim::Last] {
        let output = match classes {
            ClassDim::Last => second.movedim([1].as_slice(), [-1].as_slice()),
            _ => second.shallow_clone(),
        };
        let loss =
            CrossEntropy { classes, ignore_index: 1, label_smoothing: 0.1, ..Default::default() };
        let loss = loss.compute(&output, &target)?;
        let seen = Tensor::run_backward(&[&loss], &[&second], true, false).remove(0);
        assert!((&loss - &expected).abs().double_value(&[]) < 1e-12, "{classes:?}");
        assert!((seen - &gradient).abs().max().double_value(&[]) < 1e-12, "{classes:?}");
        let at = if classes == ClassDim::Last { -1 } else { 1 };
        let log_probabilities = output.log_softmax(at, Kind::Double);
        let nll =
            Nll { classes, ignore_index: 1, weight: None }.compute(&log_probabilities, &target)?;
        let plain =
            second.cross_entropy_loss::<Tensor>(&target, None, tch::Reduction::Mean, 1, 0.0);
        assert!((nll - plain).abs().double_value(&[]) < 1e-12, "{classes:?}");
        let metric = ReadAs { classes, ignore_index: 1, metric: Accuracy };
        let seen = metric.measure(&output, &target)?;
        assert!((seen - &accuracy).abs().double_value(&[]) < 1e-12, "{classes:?}");
    }
    Ok(())
}
