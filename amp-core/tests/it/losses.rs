//! Tests that losses with their options equal the losses of torch. The mean, the sum, the losses of
//! single examples and the gradients are compared in f64. The mean is also compared under autocast.

use amp_core::{
    Result,
    loss::{
        BinaryCrossEntropyWithLogits, CosineEmbedding, CosineSimilarity, CrossEntropy, Ctc, Dice,
        Focal, GaussianNll, HingeEmbedding, Huber, InfoNce, KlDiv, L1, Loss, Mse, Nll, PoissonNll,
        SmoothL1, TripletMargin,
    },
    precision::AutocastGuard,
    tch::{Device, Kind, Reduction, Tensor},
};
use rstest::rstest;
use serde_json::Value;

use crate::support::{
    bits::{from_bits, relative, wide},
    message,
    oracle::{list, number, oracle, parsed, text},
};

fn tensor(value: &Value) -> Tensor {
    let shape: Vec<i64> = serde_json::from_value(value["shape"].clone()).expect("a shape");
    match value.get("integers") {
        Some(of) => {
            let of: Vec<i64> = serde_json::from_value(of.clone()).expect("integers");
            Tensor::from_slice(&of).reshape(shape)
        }
        None => from_bits(Kind::Double, text(value, "bits")).reshape(shape),
    }
}

/// A function that computes the loss of a recorded case from the tensors of the case, with a given
/// reduction.
type Reduced = Box<dyn Fn(&[Tensor], Reduction) -> Result<Tensor>>;

/// Makes a `Reduced` function of a loss that takes an output and a target. For the mean, the
/// function calls the loss's method `compute`, and for other reductions its method `reduced`.
macro_rules! of_two {
    ($loss:expr) => {{
        let loss = $loss;
        Box::new(move |of: &[Tensor], reduction: Reduction| match reduction {
            Reduction::Mean => loss.compute(&of[0], &of[1]),
            _ => loss.reduced(&of[0], &of[1], reduction),
        })
    }};
}

macro_rules! of_three {
    ($loss:expr) => {{
        let loss = $loss;
        Box::new(move |of: &[Tensor], reduction: Reduction| {
            loss.reduced(&of[0], &of[1], &of[2], reduction)
        })
    }};
}

fn reduced(case: &Value, class_weights: &Tensor) -> Reduced {
    let options = &case["options"];
    let given = |key: &str| options.get(key).map(parsed);
    let flag = |key: &str| options[key].as_bool().unwrap_or(false);
    let weight = || options.get("weight").map(|_| class_weights.shallow_clone());
    let of_elements = |key: &str| options.get(key).map(tensor);
    let ignore_index = options.get("ignore_index").map_or(-100, |of| of.as_i64().expect("a class"));
    match text(case, "loss") {
        "cross_entropy" => of_two!(CrossEntropy {
            label_smoothing: given("label_smoothing").unwrap_or(0.0),
            weight: weight(),
            ignore_index,
            z_loss: given("z_loss").unwrap_or(0.0),
            ..Default::default()
        }),
        "nll_loss" => of_two!(Nll { weight: weight(), ignore_index, ..Default::default() }),
        "mse_loss" => of_two!(Mse),
        "l1_loss" => of_two!(L1),
        "huber_loss" => of_two!(Huber { delta: number(options, "delta") }),
        "smooth_l1_loss" => of_two!(SmoothL1 { beta: number(options, "beta") }),
        "binary_cross_entropy_with_logits" => of_two!(BinaryCrossEntropyWithLogits {
            weight: of_elements("weight"),
            pos_weight: of_elements("pos_weight"),
        }),
        "kl_div" => {
            of_two!(KlDiv { log_target: flag("log_target"), batchmean: flag("batchmean") })
        }
        "poisson_nll_loss" => of_two!(PoissonNll {
            log_input: flag("log_input"),
            full: flag("full"),
            ..Default::default()
        }),
        "hinge_embedding_loss" => of_two!(HingeEmbedding { margin: number(options, "margin") }),
        "focal" => {
            of_two!(Focal { alpha: number(options, "alpha"), gamma: number(options, "gamma") })
        }
        "cosine_similarity" => of_two!(CosineSimilarity { eps: number(options, "eps") }),
        "info_nce" => of_two!(InfoNce {
            temperature: number(options, "temperature"),
            symmetric: flag("symmetric"),
        }),
        "dice" => of_two!(Dice { smooth: number(options, "smooth"), batch: flag("batch") }),
        "cosine_embedding_loss" => of_three!(CosineEmbedding { margin: number(options, "margin") }),
        "triplet_margin_loss" => of_three!(TripletMargin {
            margin: number(options, "margin"),
            p: given("p").unwrap_or(2.0),
            swap: flag("swap"),
            ..Default::default()
        }),
        "gaussian_nll_loss" => {
            of_three!(GaussianNll { full: flag("full"), ..Default::default() })
        }
        "ctc_loss" => of_three!(Ctc {
            blank: options["blank"].as_i64().expect("a class"),
            zero_infinity: flag("zero_infinity"),
        }),
        other => panic!("no loss is called {other}"),
    }
}

#[track_caller]
fn assert_near(seen: &Tensor, expected: f64, within: f64) {
    let seen = seen.double_value(&[]);
    assert!((seen - expected).abs() <= within * expected.abs().max(1.0), "{seen}, not {expected}");
}

/// In f64 and under autocast, losses equal those that torch computed for the recorded cases.
#[rstest]
fn losses_equal_torchs(
    #[values(
        "cross_entropy",
        "nll_loss",
        "mse_loss",
        "l1_loss",
        "huber_loss",
        "smooth_l1_loss",
        "binary_cross_entropy_with_logits",
        "kl_div",
        "poisson_nll_loss",
        "hinge_embedding_loss",
        "focal",
        "cosine_similarity",
        "info_nce",
        "dice",
        "cosine_embedding_loss",
        "triplet_margin_loss",
        "gaussian_nll_loss",
        "ctc_loss"
    )]
    name: &str,
) -> Result<()> {
    let oracle = oracle!("losses.json");
    let class_weights = tensor(&oracle["weight"]);
    let cases = list(&oracle, "cases").iter().filter(|case| text(case, "loss") == name);
    let mut count = 0;
    for case in cases {
        count += 1;
        let (what, loss) = (text(case, "name"), reduced(case, &class_weights));
        let inputs: Vec<Tensor> = list(case, "inputs").iter().map(tensor).collect();
        let grads = list(case, "grads");
        let leaf = |(at, tensor): (usize, &Tensor)| match at < grads.len() {
            true => tensor.detach().copy().set_requires_grad(true),
            false => tensor.shallow_clone(),
        };
        let leaves: Vec<Tensor> = inputs.iter().enumerate().map(leaf).collect();
        let mean = loss(&leaves, Reduction::Mean)?;
        assert_near(&mean, number(case, "mean"), 1e-12);
        mean.backward();
        for (leaf, expected) in leaves.iter().zip(grads) {
            let expected = from_bits(Kind::Double, expected.as_str().expect("bits"));
            let seen = leaf.grad().reshape([-1]);
            assert!(relative(&seen, &wide(&expected)) < 1e-11, "{what}: gradients");
        }
        assert_near(&loss(&inputs, Reduction::Sum)?, number(case, "sum"), 1e-12);
        let (each, expected) = (loss(&inputs, Reduction::None)?, tensor(&case["each"]));
        assert_eq!(each.size(), expected.size(), "{what}");
        assert!(relative(&each, &wide(&expected)) < 1e-11, "{what}: each");

        let low = |(at, tensor): (usize, &Tensor)| match (at < grads.len(), tensor.kind()) {
            (true, _) => tensor.to_kind(Kind::Float).to_kind(Kind::BFloat16),
            (false, Kind::Double) => tensor.to_kind(Kind::Float),
            (false, _) => tensor.shallow_clone(),
        };
        let low: Vec<Tensor> = inputs.iter().enumerate().map(low).collect();
        let _autocast = AutocastGuard::enter(Device::Cpu, Kind::BFloat16)?;
        let mean = loss(&low, Reduction::Mean)?;
        assert_eq!((mean.kind(), text(case, "autocast")), (Kind::Float, "f32"), "{what}");
        assert_near(&mean.to_kind(Kind::Double), number(case, "autocast_mean"), 1e-6);
    }
    assert!(count > 0, "no case of {name}");
    Ok(())
}

/// InfoNCE accepts the outputs of both towers of a model as one stacked tensor, and ignores the
/// target.
#[test]
fn two_towers_are_one_output() -> Result<()> {
    let of = |seed: i64| Tensor::arange(12, (Kind::Double, Device::Cpu)).sin() * seed as f64;
    let (one, other) = (of(1).reshape([4, 3]), (of(2) + 0.5).reshape([4, 3]));
    let expected = InfoNce::default().compute(&one, &other)?.double_value(&[]);
    let both = Tensor::stack(&[&one, &other], 1);
    assert_near(&InfoNce::default().compute(&both, &zeros(&[4], Kind::Int64))?, expected, 0.0);
    Ok(())
}

/// Without lengths, `compute` uses all time steps of the output for each example.
#[test]
fn ctc_without_lengths_uses_all_steps() -> Result<()> {
    let oracle = oracle!("losses.json");
    let case = list(&oracle, "cases").iter().find(|case| text(case, "loss") == "ctc_loss");
    let case = case.expect("a case");
    let inputs: Vec<Tensor> = list(case, "inputs").iter().map(tensor).collect();
    assert_near(&Ctc::default().compute(&inputs[0], &inputs[1])?, number(case, "mean"), 1e-12);
    Ok(())
}

fn zeros(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::zeros(shape, (kind, Device::Cpu))
}

/// An output and a target whose shapes libtorch would broadcast, or whose shapes or dtypes the loss
/// does not support, are refused. The error contains both shapes.
#[rstest]
#[case::cosine(&CosineSimilarity::default(), &[4], &[4], Kind::Float, "both must be vectors, [N, D, …]")]
#[case::info_nce(&InfoNce::default(), &[4, 3], &[5, 3], Kind::Float, "both must have the same shape")]
#[case::info_nce_images(&InfoNce::default(), &[4, 3, 2], &[4, 3, 2], Kind::Float, "both must be [N, D]")]
#[case::dice_classes_last(&Dice::default(), &[2, 5, 3], &[2, 5], Kind::Int64, "logits must be [N, C, …]")]
#[case::dice_one_logit(&Dice::default(), &[2, 1, 3], &[2, 3], Kind::Int64, "a floating-point mask")]
#[case::dice_flat(&Dice::default(), &[2], &[2], Kind::Float, "logits must be [N, C, …]")]
#[case::focal(&Focal::default(), &[4, 1], &[4], Kind::Float, "`output.view([4])`")]
#[case::kl_div(&KlDiv::default(), &[4, 3], &[3], Kind::Float, "both must have the same shape")]
#[case::poisson(&PoissonNll::default(), &[4], &[4], Kind::Int64, "both must be floating")]
#[case::hinge(&HingeEmbedding::default(), &[4], &[3], Kind::Float, "both must have the same shape")]
#[case::smooth_l1(&SmoothL1::default(), &[4, 1], &[4], Kind::Float, "`output.view([4])`")]
#[case::ctc(&Ctc::default(), &[2, 5, 3], &[3, 2], Kind::Int64, "log probabilities must be [N, T, C]")]
#[case::ignored_probability(
    &CrossEntropy { ignore_index: 0, ..Default::default() }, &[4, 3], &[4, 3], Kind::Float,
    "ignore_index applies to int64 targets"
)]
fn shapes_that_do_not_fit_are_refused(
    #[case] loss: &dyn Loss,
    #[case] output: &[i64],
    #[case] target: &[i64],
    #[case] kind: Kind,
    #[case] why: &str,
) {
    let said = message(loss.compute(&zeros(output, Kind::Float), &zeros(target, kind)));
    let shapes = format!("the output is float32 {output:?} and the target");
    assert!(said.contains(&shapes) && said.contains(why), "{said}");
}

#[rstest]
#[case(&CrossEntropy { label_smoothing: 1.5, ..Default::default() }, "label_smoothing is 1.5, but must be from 0 to 1")]
#[case(&CrossEntropy { z_loss: -1.0, ..Default::default() }, "z_loss is -1, but must be at least 0")]
#[case(&Huber { delta: 0.0 }, "huber_loss: delta is 0, but must be above 0")]
#[case(&SmoothL1 { beta: -1.0 }, "beta is -1, but must be at least 0")]
#[case(&InfoNce { temperature: 0.0, symmetric: true }, "temperature is 0, but must be above 0")]
#[case(&Dice { smooth: f64::NAN, batch: false }, "smooth is NaN, but must be at least 0")]
#[case(&Focal { alpha: 2.0, gamma: 1.0 }, "alpha is 2, but must be at most 1")]
#[case(&PoissonNll { eps: 0.0, ..Default::default() }, "eps is 0, but must be above 0")]
fn options_out_of_range_are_refused(#[case] loss: &dyn Loss, #[case] why: &str) {
    let said = message(loss.compute(&zeros(&[4, 3], Kind::Float), &zeros(&[4, 3], Kind::Float)));
    assert!(said.contains(why), "{said}");
}

/// The `pos_weight` of a loss must have the shape of one example. Other shapes are refused, because
/// libtorch would broadcast them along the wrong dimension.
#[rstest]
#[case(&[3], &[4, 3, 3])]
#[case(&[2, 1], &[4, 3, 3])]
#[case(&[4, 1, 1, 1], &[4, 3, 3])]
fn weights_of_elements_need_the_shape_of_an_example(
    #[case] weight: &[i64],
    #[case] output: &[i64],
) {
    let output = zeros(output, Kind::Float);
    let loss = BinaryCrossEntropyWithLogits {
        pos_weight: Some(zeros(weight, Kind::Float)),
        ..Default::default()
    };
    let said = message(loss.compute(&output, &output));
    assert!(said.contains("the shape of one example, [3, 3]"), "{said}");
}

/// Two invalid values are refused: a variance below zero (`GaussianNll`), and a negative class
/// other than the ignored class (`Dice`).
#[test]
fn a_variance_below_zero_is_refused() {
    let of = zeros(&[4], Kind::Float);
    let loss = GaussianNll::default();
    let said = message(loss.reduced(&of, &of, &(&of - 1.0), Reduction::Mean));
    assert!(said.contains("a variance must be at least 0"), "{said}");
    // A class of −100 is ignored, but −1 is refused.
    let wrong = Tensor::from_slice(&[0_i64, -1]).reshape([1, 2]);
    let said = message(Dice::default().compute(&zeros(&[1, 3, 2], Kind::Float), &wrong));
    assert!(said.contains("-1"), "{said}");
}
