//! Tests of the optimizer: they compare it with closed forms and with the same formula computed in
//! f64, and they resume a run.

use std::path::{Path, PathBuf};

use amp_core::{
    callback::{Mode, ModelCheckpoint},
    nn::{Parameter, named_tensors},
    optim::{BuildOptimizer, Moments, OnDevice, Optimizer, Rates, Storage, WeightUpdate},
    prelude::*,
    record::RunRecord,
    tch::no_grad,
};
use own_optimizer::Signum;

fn parameter(name: &str, values: &[f32]) -> Parameter {
    let tensor = Tensor::from_slice(values).set_requires_grad(true);
    Parameter { name: name.to_owned(), tensor }
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.detach().to_kind(Kind::Double).reshape([-1])).expect("numbers")
}

fn built(options: Signum, weight: &Parameter) -> Box<dyn Optimizer> {
    let same = Parameter { name: weight.name.clone(), tensor: weight.tensor.shallow_clone() };
    options.build(vec![same]).expect("an optimizer")
}

fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
    }
}

/// The gradient of Σ c·w is constant, so w_t = w_0 − lr·t·sign(c) and m_t = (1 − β^t)·c.
#[test]
fn a_constant_gradient_has_a_closed_form() {
    let (lr, beta, c) = (0.01, 0.9, [3.0_f32, -0.5, 0.0]);
    let weight = parameter("w", &[1.0, 2.0, -3.0]);
    let mut optimizer = built(Signum { lr, momentum: beta }, &weight);
    let steps = 7;
    for _ in 0..steps {
        optimizer.zero_grad().expect("no gradients");
        (&weight.tensor * Tensor::from_slice(&c)).sum(Kind::Float).backward();
        optimizer.step().expect("a step");
    }
    let moved = lr * f64::from(steps);
    close(&numbers(&weight.tensor), &[1.0 - moved, 2.0 + moved, -3.0]);
    let share = 1.0 - beta.powi(steps);
    let state = optimizer.state().expect("a state");
    let moment = state.tensor("momentum_buffer/w").expect("m");
    close(&numbers(moment), &c.map(|c| share * f64::from(c)));
}

/// The gradient of ½·Σ a·w² is a·w. It changes its sign when a weight passes zero. The test
/// compares 60 steps with the formula, which it computes in f64.
#[test]
fn a_quadratic_agrees_with_the_formula_step_by_step() {
    let (lr, beta, a) = (0.03, 0.8, [1.0, 4.0, 0.25]);
    let mut w = [0.5, -0.4, 1.0];
    let mut m = [0.0; 3];
    let weight = parameter("w", &w.map(|w| w as f32));
    let mut optimizer = built(Signum { lr, momentum: beta }, &weight);
    let factor = Tensor::from_slice(&a.map(|a| a as f32));
    for _ in 0..60 {
        optimizer.zero_grad().expect("no gradients");
        (weight.tensor.square() * &factor * 0.5).sum(Kind::Float).backward();
        optimizer.step().expect("a step");
        for ((w, m), a) in w.iter_mut().zip(&mut m).zip(a) {
            *m = beta * *m + (1.0 - beta) * a * *w;
            *w -= lr * m.signum();
        }
        close(&numbers(&weight.tensor), &w);
    }
}

#[test]
fn a_parameter_without_a_gradient_does_not_change() {
    let weight = parameter("w", &[1.0, 2.0]);
    let mut optimizer = built(Signum::default(), &weight);
    optimizer.step().expect("a step");
    assert_eq!(numbers(&weight.tensor), [1.0, 2.0]);
}

#[test]
fn options_out_of_range_are_refused() {
    let refused = |options: Signum| {
        let result = options.build(vec![parameter("w", &[1.0])]);
        result.err().expect("a refusal").to_string()
    };
    assert!(refused(Signum { lr: -1.0, momentum: 0.9 }).contains("lr is -1"));
    assert!(refused(Signum { lr: f64::NAN, momentum: 0.9 }).contains("lr is NaN"));
    assert!(refused(Signum { lr: 1.0, momentum: 1.0 }).contains("momentum is 1"));
}

/// After three steps, the f32 master weights of bf16 parameters equal f32 parameters that took the
/// same steps. With `Moments`, m is stored in bf16 or 8 bits, and the parameters have the same
/// values as with m in f32.
#[test]
fn every_storage_gives_the_same_steps() {
    let weight = |kind| {
        let weight = parameter("w", &[1.0, -2.0, 0.5]);
        Parameter { tensor: weight.tensor.detach().to_kind(kind).set_requires_grad(true), ..weight }
    };
    let run = |kind: Kind, storage: Storage| {
        let mut optimizer =
            Signum::default().build_with(vec![weight(kind)], storage).expect("built");
        for pull in [1.0, 0.5, -3.0] {
            optimizer.zero_grad().expect("no gradients");
            (&optimizer.parameters()[0].tensor * pull).sum(kind).backward();
            optimizer.step().expect("a step");
        }
        optimizer
    };
    let kept = |optimizer: &dyn Optimizer, name: &str| {
        optimizer.state().expect("a state").tensor(name).expect("kept").shallow_clone()
    };
    let exact = run(Kind::Float, Storage::default());
    let masters = run(Kind::BFloat16, WeightUpdate::MasterWeights.into());
    assert_eq!(kept(masters.as_ref(), "master/w"), exact.parameters()[0].tensor);
    for (moments, kind) in [(Moments::Bf16, Kind::BFloat16), (Moments::EightBit, Kind::Uint8)] {
        let reduced = run(Kind::Float, moments.into());
        assert_eq!(kept(reduced.as_ref(), "momentum_buffer/w").kind(), kind);
        close(&numbers(&reduced.parameters()[0].tensor), &numbers(&exact.parameters()[0].tensor));
    }
}

#[test]
fn values_on_the_device_are_refused() {
    let mut optimizer = built(Signum::default(), &parameter("w", &[1.0]));
    let one = Tensor::from(1.0_f32);
    for known in [
        OnDevice { found_inf: Some(&one), factor: None },
        OnDevice { found_inf: None, factor: Some(&one) },
    ] {
        assert!(optimizer.step_with(known).is_err());
    }
}

#[test]
fn a_schedule_sets_the_rates() {
    let mut optimizer = built(Signum { lr: 0.1, momentum: 0.9 }, &parameter("w", &[1.0]));
    optimizer.set_rates(&[Rates { lr: 0.05, momentum: None }]);
    assert_eq!(optimizer.rates(), [Rates { lr: 0.05, momentum: Some(0.9) }]);
    optimizer.set_rates(&[Rates { lr: 0.05, momentum: Some(0.5) }]);
    assert_eq!(optimizer.rates(), [Rates { lr: 0.05, momentum: Some(0.5) }]);
}

/// The optimizer refuses the state of another kind of optimizer, and the state of an optimizer with
/// other parameters. In both cases, the optimizer does not change.
#[test]
fn another_state_is_refused_as_a_whole() {
    let state = |options: &dyn BuildOptimizer, name: &str, values: &[f32]| {
        let parameters = vec![parameter(name, values)];
        options.build(parameters).and_then(|built| built.state()).expect("a state")
    };
    let other = Signum { lr: 0.5, momentum: 0.1 };
    let mut optimizer = built(Signum::default(), &parameter("w", &[1.0, 2.0]));
    let before = optimizer.rates();
    for foreign in [
        state(&amp_core::optim::Sgd { momentum: 0.9, ..Default::default() }, "w", &[1.0, 2.0]),
        state(&other, "v", &[1.0, 2.0]),
        state(&other, "w", &[1.0]),
    ] {
        assert!(optimizer.load_state(&foreign).is_err());
        assert_eq!(optimizer.rates(), before);
    }
    optimizer.load_state(&state(&other, "w", &[1.0, 2.0])).expect("the same layout");
    assert_eq!(optimizer.rates(), [Rates { lr: 0.5, momentum: Some(0.1) }]);
}

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(Signum, lr = 0.01, momentum = 0.95)]
#[scheduler(cosine_annealing, t_max = 6)]
struct Net {
    #[layer(sequential(linear(4, 8), tanh, linear(8, 1)))]
    body: Sequential,
}

impl Net {
    /// Builds the model. Its weights do not come from the random generator, because other tests may
    /// use the generator at the same time.
    fn new() -> Self {
        let net = Self::builder().build().expect("a model");
        for (at, (_, mut tensor, _)) in named_tensors(&net).into_iter().enumerate() {
            let values = wave(&tensor.size(), 0.9 + at as f64) * 0.5;
            no_grad(|| tensor.copy_(&values));
        }
        net
    }

    fn weights(&self) -> Vec<f64> {
        named_tensors(self).iter().flat_map(|(_, tensor, _)| numbers(tensor)).collect()
    }
}

/// Returns a tensor of this shape with the values sin(pace · i), where i = 0, 1, … counts the
/// elements.
fn wave(shape: &[i64], pace: f64) -> Tensor {
    let count = shape.iter().product::<i64>();
    (Tensor::arange(count, (Kind::Float, Device::Cpu)) * pace).sin().view(shape)
}

fn data() -> DataModule {
    let part = |rows: i64, pace: f64| {
        let input = wave(&[rows, 4], pace);
        let target = input.sum_dim_intlist([1_i64].as_slice(), true, Kind::Float).sin();
        Batch::new(input, target).expect("a batch")
    };
    DataModule::new("waves", part(64, 0.7), part(16, 1.3), 16)
}

fn config(precision: Precision, epochs: i64) -> TrainerConfig {
    let mut config = TrainerConfig::new(precision, Device::Cpu);
    (config.max_epochs, config.seed) = (epochs, 7);
    // At this scale the gradients of this model do not overflow, so no step is skipped.
    config.numerics.scaler.init_scale = 1024.0;
    config
}

/// Returns the checkpoint that is saved after each epoch.
fn last(folder: &Path) -> PathBuf {
    folder.join("last.safetensors")
}

fn saving(folder: &Path) -> ModelCheckpoint {
    ModelCheckpoint::new(folder, "val_loss", Mode::Min).expect("a folder").save_last(true)
}

fn fit(mut trainer: Trainer<'_>) -> (Net, RunRecord) {
    let mut net = Net::new();
    let record = trainer.fit(&mut net, &data()).expect("a run");
    (net, record)
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let trainer = |epochs| Trainer::new(config(Precision::F32True, epochs));
    let (straight, _) = fit(trainer(5));
    fit(trainer(2).callback(saving(folder.path())));
    let (resumed, record) = fit(trainer(5).resume_from(last(folder.path())));
    assert_eq!(record.epochs.len(), 3, "the record has the remaining epochs");
    assert_eq!(straight.weights(), resumed.weights());
}

/// Trains for one epoch. Returns the largest change of a weight, and all values of m.
fn one_epoch(precision: Precision) -> (f64, Vec<f64>) {
    let folder = tempfile::tempdir().expect("a folder");
    let trainer = Trainer::new(config(precision, 1)).callback(saving(folder.path()));
    let (net, record) = fit(trainer);
    assert_eq!((record.end.global_step, record.end.skipped), (4, 0), "{precision}");
    let moved = Net::new().weights().into_iter().zip(net.weights());
    let most = moved.map(|(start, end)| (start - end).abs()).fold(0.0, f64::max);
    let mut saved = Tensor::read_safetensors(last(folder.path())).expect("the checkpoint");
    saved.retain(|(name, _)| name.contains("momentum_buffer/"));
    saved.sort_by(|(one, _), (other, _)| one.cmp(other));
    (most, saved.iter().flat_map(|(_, moment)| numbers(moment)).collect())
}

/// In four steps the largest change of a weight is four times lr. The optimizer receives gradients
/// without the loss scale, which is 1024 in 16-mixed. Every element of m therefore differs from
/// 32-true's by less than 5 % of the largest absolute value in 32-true's m.
#[test]
fn every_precision_steps_with_true_gradients() {
    let (_, exact) = one_epoch(Precision::F32True);
    assert_eq!(exact.len(), Net::new().weights().len());
    let largest = exact.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
    for precision in [Precision::F16Mixed, Precision::Bf16Mixed, Precision::F64True] {
        let (most, moments) = one_epoch(precision);
        assert!((most - 4.0 * 0.01).abs() < 1e-6, "{precision}: {most}");
        for (found, exact) in moments.iter().zip(&exact) {
            let off = (found - exact).abs() / largest;
            assert!(off < 0.05, "{precision}: {found} is not {exact}");
        }
    }
}

/// The code in the README equals the crate's code.
#[test]
fn the_page_shows_the_code() {
    let (page, code) = (include_str!("../README.md"), include_str!("../src/lib.rs"));
    let block = page.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next());
    assert!(code.contains(block.expect("a block of Rust")), "src/lib.rs has other code");
}
