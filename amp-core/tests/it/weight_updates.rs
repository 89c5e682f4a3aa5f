//! Tests of updates that are smaller than the distance between neighbouring bf16 numbers. With
//! rounding to nearest, such updates are lost. Master weights keep them, and stochastic rounding
//! keeps them on average.

use amp_core::{
    Error, Result, TrainerConfig,
    optim::{
        Adam, AdamW, BuildOptimizer, Interval, Lion, Optimizer, OptimizerConfig, RmsProp, Sgd,
        StepLr, WeightUpdate,
    },
    precision::Precision,
    tch::{Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    bits::{bits, values},
    device, message,
    model::{Model, constant, fit, linear, same},
    parameter, seeded, set_gradients,
};

fn ones(count: i64, kind: Kind) -> Tensor {
    Tensor::ones([count], (kind, device()))
}

/// Builds an optimizer with one weight that consists of `count` ones.
fn over_ones(
    options: &dyn BuildOptimizer,
    count: i64,
    kind: Kind,
    update: WeightUpdate,
) -> Result<Box<dyn Optimizer>> {
    options.build_with(vec![parameter("weight", &ones(count, kind))], update.into())
}

/// Runs optimizer steps with gradients of 1.
fn train(optimizer: &mut dyn Optimizer, steps: usize) -> Result<()> {
    for _ in 0..steps {
        let grad = Tensor::ones_like(&optimizer.parameters()[0].tensor).detach();
        set_gradients(optimizer, &[Some(grad)]);
        optimizer.step()?;
    }
    Ok(())
}

/// Returns the mean of the weight's elements in f64.
fn mean(optimizer: &dyn Optimizer) -> f64 {
    optimizer.parameters()[0]
        .tensor
        .detach()
        .to_kind(Kind::Double)
        .mean(Kind::Double)
        .double_value(&[])
}

/// The distance between neighbouring bf16 numbers just below 1.
const SPACING: f64 = 1.0 / 256.0;

/// One step changes each element of the weight from 1 to 0.999, which stochastic rounding rounds to
/// one of the two nearest bf16 numbers. The mean of all elements equals the f32 result within five
/// standard errors.
#[test]
fn stochastic_rounding_is_unbiased() -> Result<()> {
    let _generator = seeded(0);
    let count = 400_000;
    let options = Sgd { lr: 1e-3, ..Default::default() };
    let update = WeightUpdate::StochasticRounding;
    let mut optimizer = over_ones(&options, count, Kind::BFloat16, update)?;
    train(optimizer.as_mut(), 1)?;
    let exact = f64::from(1.0_f32 - 1e-3_f32);
    let weights = values(&optimizer.parameters()[0].tensor);
    assert!(weights.iter().all(|weight| *weight == 1.0 || *weight == 1.0 - SPACING));
    let share = (1.0 - exact) / SPACING;
    let error = SPACING * (share * (1.0 - share) / count as f64).sqrt();
    let mean = mean(optimizer.as_ref());
    assert!((mean - exact).abs() < 5.0 * error, "mean {mean}, expected {exact} ± {error}");
    Ok(())
}

/// With stochastic rounding, the mean of many equal updates is right, for positive and negative
/// weights of several magnitudes. Numbers that need no rounding, infinities and zeros do not
/// change.
#[test]
fn stochastic_rounding_is_unbiased_for_every_size() -> Result<()> {
    let _generator = seeded(1);
    let count = 100_000;
    for start in [3.0, -3.0, 1e-30, -1e30, 0.0, f64::INFINITY] {
        let start = (ones(count, Kind::Float) * start).to_kind(Kind::BFloat16);
        let first = values(&start)[0];
        let (target, spacing) = match first.is_finite() && first != 0.0 {
            // The exact result of the update lies between two bf16 numbers: a third of the way from
            // the weight to its neighbour that is farther from 0.
            true => {
                let spacing = first.abs().log2().floor().exp2() / 128.0;
                (first + first.signum() * spacing / 3.0, spacing)
            }
            false => (first, 1.0),
        };
        let grad = if target == first { 0.0 } else { first - target };
        let options = Sgd { lr: 1.0, ..Default::default() };
        let mut optimizer = options.build_with(
            vec![parameter("weight", &start)],
            WeightUpdate::StochasticRounding.into(),
        )?;
        let grad = (ones(count, Kind::Float) * grad).to_kind(Kind::BFloat16);
        let step = values(&grad)[0];
        set_gradients(optimizer.as_mut(), &[Some(grad)]);
        optimizer.step()?;
        let target = f64::from((first - step) as f32);
        if step == 0.0 {
            let weights = values(&optimizer.parameters()[0].tensor);
            assert!(weights.iter().all(|weight| *weight == first), "{first} does not change");
            continue;
        }
        let share = (target - first).abs() / spacing;
        let error = spacing * (share * (1.0 - share) / count as f64).sqrt();
        let mean = mean(optimizer.as_ref());
        assert!((mean - target).abs() < 5.0 * error, "mean {mean}, expected {target} ± {error}");
    }
    Ok(())
}

/// Each update is 10⁻⁵, which is 1/400 of the distance between neighbouring bf16 numbers. With
/// rounding to nearest, the weights have not changed after 400 steps. With stochastic rounding,
/// their mean has changed by the sum of the updates. With master weights, the weights stay at 1
/// until the master weights are closer to the next bf16 number below 1, and then become this
/// number.
#[test]
fn updates_below_the_spacing_are_lost_or_kept_by_the_option() -> Result<()> {
    let _generator = seeded(2);
    let options = Sgd { lr: 1e-5, ..Default::default() };
    let count = 100_000;
    let run = |update, steps| -> Result<f64> {
        let mut optimizer = over_ones(&options, count, Kind::BFloat16, update)?;
        train(optimizer.as_mut(), steps)?;
        Ok(mean(optimizer.as_ref()))
    };
    assert_eq!(run(WeightUpdate::RoundToNearest, 400)?, 1.0);
    let mean = run(WeightUpdate::StochasticRounding, 200)?;
    let share = 2e-3 / SPACING;
    let error = SPACING * (share * (1.0 - share) / count as f64).sqrt();
    assert!((mean - (1.0 - 2e-3)).abs() < 6.0 * error, "{mean} ± {error}");
    // All elements are equal, but their mean is a sum in f64 whose order depends on the device. So
    // the mean may have a rounding error.
    let change = |steps| Ok::<_, Error>(1.0 - run(WeightUpdate::MasterWeights, steps)?);
    assert!(change(190)?.abs() < 1e-12);
    assert!((change(200)? - SPACING).abs() < 1e-12);
    Ok(())
}

/// With master weights, the 16-bit parameters equal the rounded parameters of an f32 run, bit for
/// bit. The running averages are f32 and equal those of the f32 run.
#[rstest]
fn masters_equal_an_f32_run(
    #[values(
        &AdamW::default(),
        &Adam { fused: false, ..Default::default() },
        &Sgd { momentum: 0.9, ..Default::default() },
        &RmsProp { centered: true, ..Default::default() },
        &Lion::default()
    )]
    options: &dyn BuildOptimizer,
    #[values(Kind::BFloat16, Kind::Half)] kind: Kind,
) -> Result<()> {
    let mut half = over_ones(options, 9, kind, WeightUpdate::MasterWeights)?;
    let mut full = over_ones(options, 9, Kind::Float, WeightUpdate::RoundToNearest)?;
    train(half.as_mut(), 50)?;
    train(full.as_mut(), 50)?;
    let weight = &full.parameters()[0].tensor;
    let (half_state, full_state) = (half.state()?, full.state()?);
    assert_eq!(bits(half_state.tensor("master/weight")?), bits(weight));
    assert_eq!(bits(&half.parameters()[0].tensor), bits(&weight.to_kind(kind)));
    for (name, tensor) in full_state.tensors() {
        assert_eq!(bits(half_state.tensor(name)?), bits(tensor), "{name}");
    }
    assert!(full_state.tensor("master/weight").is_err(), "f32 weights need no master weights");
    Ok(())
}

/// With the default `RoundToNearest`, Adam's running averages of bf16 parameters are bf16, as in
/// torch. With a beta2 of 0.999 and gradients of zero, the running average of the squares should
/// become smaller by a factor of 0.999 per step. In bf16, it does not change, because this product
/// is rounded to the old value. With master weights or stochastic rounding, the running averages
/// are f32, and it does become smaller.
#[rstest]
#[case(WeightUpdate::RoundToNearest, Kind::BFloat16, 1.0)]
#[case(WeightUpdate::MasterWeights, Kind::Float, 0.999)]
#[case(WeightUpdate::StochasticRounding, Kind::Float, 0.999)]
fn the_running_square_decays_in_f32(
    #[case] update: WeightUpdate,
    #[case] kind: Kind,
    #[case] decay: f64,
) -> Result<()> {
    let _generator = seeded(3);
    let mut optimizer = over_ones(&Adam::default(), 1, Kind::BFloat16, update)?;
    train(optimizer.as_mut(), 1)?;
    let square = |optimizer: &dyn Optimizer| -> Result<(Kind, f64)> {
        let state = optimizer.state()?;
        let square = state.tensor("exp_avg_sq/weight")?;
        Ok((square.kind(), square.double_value(&[0])))
    };
    let before = square(optimizer.as_ref())?.1;
    let zero = Tensor::zeros_like(&optimizer.parameters()[0].tensor).detach();
    set_gradients(optimizer.as_mut(), &[Some(zero)]);
    optimizer.step()?;
    let (seen, after) = square(optimizer.as_ref())?;
    assert_eq!(seen, kind);
    assert!((after / before - decay).abs() < 1e-6, "{before} became {after}");
    Ok(())
}

/// Stochastic rounding applies only to bf16 parameters. It refuses f16 parameters, and the update
/// of f32 parameters is the ordinary f32 update.
#[test]
fn stochastic_rounding_applies_to_bf16_alone() -> Result<()> {
    let options = Sgd { lr: 1e-5, ..Default::default() };
    let said = message(over_ones(&options, 1, Kind::Half, WeightUpdate::StochasticRounding));
    assert!(said.contains("`weight` is float16: use master weights"), "{said}");
    let mut optimizer = over_ones(&options, 1, Kind::Float, WeightUpdate::StochasticRounding)?;
    train(optimizer.as_mut(), 1)?;
    assert_eq!(values(&optimizer.parameters()[0].tensor), [f64::from(1.0_f32 - 1e-5)]);
    Ok(())
}

/// The option `weight_update` of the trainer's configuration reaches the optimizer.
#[rstest]
#[case(WeightUpdate::RoundToNearest, false)]
#[case(WeightUpdate::MasterWeights, true)]
#[case(WeightUpdate::StochasticRounding, true)]
fn the_trainer_passes_the_option_to_the_optimizer(
    #[case] update: WeightUpdate,
    #[case] changes: bool,
) -> Result<()> {
    let _generator = seeded(4);
    let mut config = TrainerConfig::new(Precision::Bf16True, device());
    config.max_epochs = 40;
    config.numerics.weight_update = update;
    let module = linear(8, 8)?;
    for (_, tensor, _) in amp_core::nn::named_tensors(&module) {
        let _ = amp_core::tch::no_grad(|| tensor.shallow_clone().fill_(1.0));
    }
    // The gradients are about 2, so 40 steps should change a weight by about 8e-3. A single step of
    // 2e-4 is smaller than the distance between bf16 numbers near 1.
    let mut model =
        Model::regression(module, |_| OptimizerConfig::new(Sgd { lr: 1e-4, ..Default::default() }));
    fit(&config, &mut model, &same(constant(8, 8, 1.0)?, 8)?).1?;
    let changed = amp_core::nn::named_tensors(&model)
        .iter()
        .any(|(_, tensor, _)| values(tensor).iter().any(|weight| *weight != 1.0));
    assert_eq!(changed, changes);
    Ok(())
}

/// Trains a linear layer with inputs of ones, for two steps in each epoch, at the learning rate
/// `rate`. Returns the run's notes about weights that did not change.
fn notes(
    precision: Precision,
    rate: f64,
    update: WeightUpdate,
    scheduled: bool,
    epochs: i64,
) -> Result<Vec<String>> {
    let _generator = seeded(0);
    let mut config = TrainerConfig::new(precision, device());
    (config.max_epochs, config.numerics.weight_update) = (epochs, update);
    let mut model = Model::regression(linear(8, 8)?, move |_| {
        let sgd = OptimizerConfig::new(Sgd { lr: rate, ..Default::default() });
        match scheduled {
            true => sgd.with_scheduler(StepLr { step_size: 100, gamma: 0.5 }, Interval::Step),
            false => sgd,
        }
    });
    let record = fit(&config, &mut model, &same(constant(8, 8, 1.0)?, 4)?).1?;
    Ok(record.notes.into_iter().filter(|note| note.contains("did not change")).collect())
}

/// ml-by-hand#85: if the weights of a run do not change, the run reports this once. The note
/// contains the percentage of weights that did not change, and a remedy.
#[rstest]
#[case::bf16(Precision::Bf16True, 1e-6, "bfloat16's spacing", "step 1 ")]
#[case::f16(Precision::F16True, 1e-7, "float16's spacing", "step 1 ")]
fn lost_updates_are_reported(
    #[case] precision: Precision,
    #[case] rate: f64,
    #[case] spacing: &str,
    #[case] step: &str,
) -> Result<()> {
    let told = notes(precision, rate, WeightUpdate::RoundToNearest, false, 5)?;
    assert_eq!(told.len(), 1, "{told:?}");
    let share: f64 = told[0].split(' ').next().expect("a share").parse().expect("a number");
    assert!(share > 90.0, "{}", told[0]);
    for part in [spacing, step, "--weight-update master-weights"] {
        assert!(told[0].contains(part), "{}", told[0]);
    }
    // With a learning-rate schedule, the trainer checks the tenth step instead of the first,
    // because the first rates may be very small, as in a warm-up.
    let told = notes(precision, rate, WeightUpdate::RoundToNearest, true, 5)?;
    assert!(told.len() == 1 && told[0].contains("step 10 "), "{told:?}");
    Ok(())
}

#[rstest]
#[case(Precision::Bf16True, 0.3, WeightUpdate::RoundToNearest)]
#[case(Precision::Bf16True, 1e-6, WeightUpdate::MasterWeights)]
#[case(Precision::Bf16True, 1e-6, WeightUpdate::StochasticRounding)]
#[case(Precision::F32True, 1e-6, WeightUpdate::RoundToNearest)]
#[case(Precision::Bf16Mixed, 1e-6, WeightUpdate::RoundToNearest)]
fn kept_updates_are_not_reported(
    #[case] precision: Precision,
    #[case] rate: f64,
    #[case] update: WeightUpdate,
) -> Result<()> {
    assert_eq!(notes(precision, rate, update, false, 2)?, [""; 0]);
    Ok(())
}
