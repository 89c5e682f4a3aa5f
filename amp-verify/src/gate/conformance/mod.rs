//! Compares the first steps under a precision with the same steps under 32-true, from the same
//! weights and with the same examples. The comparison reveals errors that hardly affect the
//! accuracy. Dropout is off, because on a GPU its random mask depends on the dtype. Batch norms use
//! their running statistics. If 32-true does not stay finite with running statistics, batch norms
//! use the statistics of the batch.

mod after_layers;
mod bounds;
pub(super) mod emulation;
mod figures;
mod locate;
#[cfg(test)]
mod own_operations;
mod steps;

use std::rc::Rc;

use amp_core::{Result, precision::Precision, random};

pub(super) use self::bounds::{OF_GRADIENT, OF_LOSS, tolerance_limit};
use self::{
    bounds::{Bounds, Least},
    emulation::{Emulation, Rounding},
    figures::{Exact, Figures, Masks, What, noisy},
    locate::locate,
    steps::{Ran, Steps},
};
use super::{
    budget::Budget,
    checked::{Checked, Unit},
    deadline::Deadline,
    job::Job,
    outcome::Outcome,
    reason::{Failure, Reason},
    stages::Stages,
};
use crate::{faults::Fault, registry::Registry, reset::ResetModel, text::significant};

/// The number of optimizer steps that are compared.
pub(super) const STEPS: u64 = 6;
/// The loss scale in these steps. It is so low that no step overflows.
const LOW_SCALE: f64 = 1024.0;

/// Runs the gate's job that compares the first steps with those of 32-true. The model is built only
/// once and reset before each run.
pub(super) fn run(job: &Job, registry: &Registry, deadline: &Deadline) -> Result<Outcome> {
    let mut case = job.case(registry, Precision::F32True)?;
    let budget = Budget::of(&case, STEPS)?;
    case.data.batch_size = budget.examples;
    let _section = random::seeded(case.trainer.seed)?;
    let mut stages = Stages::new(job);
    let mut model = ResetModel::of(&case)?;
    stages.end("building the model");
    let mut exact_steps = Steps {
        job,
        case: &case,
        precision: Precision::F32True,
        batch_statistics: false,
        deadline,
    };
    let exact = match exact_steps.run(&mut model, exact_steps.config(STEPS, LOW_SCALE)) {
        Err(error) if deadline.has_ended() => return Err(error),
        Ok(exact) if exact.finite => exact,
        // With the initial running statistics (mean 0, variance 1), batch norms do not normalize,
        // so the activations of a deep model may overflow. The model then runs again with batch
        // statistics.
        _ => {
            exact_steps.batch_statistics = true;
            exact_steps.run(&mut model, exact_steps.config(STEPS, LOW_SCALE))?
        }
    };
    let batch_statistics = exact_steps.batch_statistics;
    stages.end("32-true");
    let mut case = job.case_like(&case, registry, job.precision)?;
    case.data.batch_size = budget.examples;
    let steps = Steps { job, case: &case, precision: job.precision, batch_statistics, deadline };
    let config = |count| {
        let mut config = steps.config(count, LOW_SCALE);
        Fault::config(job.fault, &mut config);
        config
    };
    model.follow(&case)?;
    let ran = steps.run(&mut model, config(STEPS))?;
    stages.end("the precision");
    let mut outcome = Outcome::failed(Failure::new(Reason::Crashed, ""));
    outcome.failures.clear();
    let Unchanged { runs, least, noisy } =
        unchanged(job, registry, &mut model, (&exact, budget, &steps))?;
    stages.end("runs with emulated rounding");
    let Budget { examples, draws, .. } = budget;
    let without = if batch_statistics { "dropout" } else { "dropout and batch statistics" };
    let over = format!(
        "{STEPS} steps of {examples} examples without {without}, bounds from {draws} runs with emulated rounding"
    );
    let (exact_run, bounds) = (Exact::new(&exact, &noisy)?, Bounds::new(&runs, least));
    let (checked, mut texts) = judged(&exact_run.compare(&ran)?, &bounds, &over);
    if let Some(first) = texts.first_mut() {
        *first += &locate(job, &case, budget)?;
        let is_within = |found: &Figures| judged(found, &bounds, &over).1.is_empty();
        model.follow(&case)?;
        *first += &after_layers::blame(&steps, &mut model, &exact_run, config, is_within)?;
        stages.end("each layer alone");
    }
    let failures = &mut outcome.failures;
    failures.extend(texts.into_iter().map(|text| Failure::new(Reason::NotConformant, text)));
    if ran.trace.rates != exact.trace.rates {
        let text = "the learning rates of the first steps differ from those of 32-true";
        failures.push(Failure::new(Reason::Schedule, text));
    }
    if !ran.finite {
        failures
            .push(Failure::new(Reason::NonFinite, "a weight is not finite after the first steps"));
    }
    outcome.conformance = Some(checked);
    Ok(outcome)
}

/// The results of correct runs with emulated rounding, from which the bounds are computed.
struct Unchanged {
    /// How far the first steps of each run are from those of 32-true.
    runs: Vec<Figures>,
    /// The lower limits of the bounds.
    least: Least,
    /// The weights whose gradients are rounding errors alone.
    noisy: Masks,
}

/// Runs the first steps several times with emulated rounding, without the fault that the self-test
/// may have put into the job.
fn unchanged(
    job: &Job,
    registry: &Registry,
    model: &mut ResetModel,
    (of_job, budget, of): (&Ran, Budget, &Steps<'_>),
) -> Result<Unchanged> {
    // A fault that also affects 32-true stays in the runs with emulated rounding, because this
    // check is to find only differences between the precision and 32-true.
    let fault = job.fault.filter(|fault| fault.touches_baseline());
    let is_unbroken = fault == job.fault;
    let job = &Job { fault, ..job.clone() };
    let mut case = job.case_like(of.case, registry, job.precision)?;
    case.data.batch_size = budget.examples;
    model.follow(&case)?;
    let overrides = Rc::new(job.overrides.clone());
    let emulation = Rc::new(Emulation::of(&case, model.reset()?, job.precision, &overrides)?);
    let mut case = job.case_like(&case, registry, emulation.wide)?;
    case.data.batch_size = budget.examples;
    model.follow(&case)?;
    let steps = Steps { job, case: &case, precision: emulation.wide, ..*of };
    let own;
    let exact = if is_unbroken && emulation.wide == Precision::F32True {
        of_job
    } else {
        own = steps.run_at_low_scale(model, None)?;
        &own
    };
    let mut emulated =
        |number| steps.run_at_low_scale(model, Some(Rounding::new(&emulation, job.seed, number)));
    // The masks come from a run of their own, and not from those from which the bounds are
    // computed.
    let noisy = noisy(exact, &emulated(0)?)?;
    let exact = Exact::new(exact, &noisy)?;
    let runs = (1..=budget.draws).map(|number| exact.compare(&emulated(number)?));
    let runs = runs.collect::<Result<_>>()?;
    let least = Least { loss: emulation.loss(), weights: exact.of_constants() };
    Ok(Unchanged { runs, least, noisy })
}

/// Compares each measured difference from 32-true with its bound. Returns the results, and a text
/// for each result that exceeds its bound. All gradients together have one result: that of the
/// parameter whose difference is largest relative to its bound.
fn judged(found: &Figures, bounds: &Bounds<'_>, over: &str) -> (Vec<Checked>, Vec<String>) {
    let all: Vec<(&What, f64, f64)> =
        found.iter().map(|(what, figure)| (what, *figure, bounds.of(what))).collect();
    let (gradients, mut judged): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(what, ..)| matches!(what, What::Gradient(_)));
    // A measured value that is NaN exceeds every bound. If a bound is not finite, every value
    // exceeds it.
    let is_beyond =
        |&(_, figure, bound): &(&What, f64, f64)| !(bound.is_finite() && figure.abs() <= bound);
    let beyond = gradients.iter().filter(|gradient| is_beyond(gradient)).count();
    let share = |&(_, figure, bound): &(&What, f64, f64)| match figure.is_nan() {
        true => f64::INFINITY,
        false => figure / bound,
    };
    judged.extend(gradients.into_iter().max_by(|a, b| share(a).total_cmp(&share(b))));
    let (mut checked, mut texts) = (Vec::new(), Vec::new());
    for entry in judged {
        let (what, figure, bound) = entry;
        if is_beyond(&entry) {
            let others = match what {
                What::Gradient(_) if beyond > 1 => {
                    format!(", as do {} other gradients", beyond - 1)
                }
                _ => String::new(),
            };
            texts.push(format!(
                "{what} differs from 32-true's by {}, more than the bound {}{others}",
                significant(figure, 3),
                significant(bound, 2)
            ));
        }
        let bound = if bound.is_finite() { bound } else { f64::NAN };
        let what = what.to_string();
        let figure = (figure.abs(), bound);
        checked.push(Checked::at_most(Reason::NotConformant, what, over, Unit::Share, figure));
    }
    (checked, texts)
}

#[cfg(test)]
mod tests {
    use amp_core::{nn::Gru, prelude::*};
    use rstest::rstest;

    use super::*;
    use crate::{
        DataSet, Registry,
        gate::{Task, waves::waves},
        length::Length,
        model, project,
    };

    /// A model that multiplies its inputs by `size`. With the initial running statistics of its
    /// batch norm (mean 0, variance 1), all its activations are about as large as `size`.
    #[derive(LightningModule)]
    #[forward(|x| head(&norm(&x.f_mul_scalar(self.size)?)?))]
    #[loss(mse_loss)]
    #[optimizer(sgd, lr = 0.1)]
    struct Net {
        #[hparam(default = 1.0)]
        size: f64,
        #[layer(batch_norm1d(4))]
        norm: BatchNorm,
        #[layer(linear(4, 1))]
        head: Linear,
    }

    /// A recurrent network for sequences.
    #[derive(LightningModule)]
    #[forward(|x| {
        let (states, _) = gru(x, None, None)?;
        head(&states.f_select(1, -1)?)
    })]
    #[loss(mse_loss)]
    #[optimizer(adam, lr = 1e-3)]
    struct Fused {
        #[layer(gru(4, 32, batch_first = true))]
        gru: Gru,
        #[layer(linear(32, 1))]
        head: Linear,
    }

    /// A recurrent network of linear layers, each of which runs at each position of a sequence.
    #[derive(LightningModule)]
    #[forward(|x| {
        let mut h = Tensor::f_zeros([x.size()[0], 32], (x.kind(), x.device()))?;
        for step in 0..x.size()[1] {
            let sum = input(&x.f_select(1, step)?)?.f_add(&hidden(&h)?)?;
            h = cx.within("state", &sum.f_tanh()?)?;
        }
        head(&h)
    })]
    #[loss(mse_loss)]
    #[optimizer(adam, lr = 1e-3)]
    struct Steps {
        #[layer(linear(4, 32))]
        input: Linear,
        #[layer(linear(32, 32))]
        hidden: Linear,
        #[layer(linear(32, 1))]
        head: Linear,
    }

    /// Returns a data set for regression: the inputs are sequences of length 50, the targets
    /// numbers.
    fn sequences(batch_size: i64) -> Result<DataModule> {
        let part = |first: i64| {
            let (length, width, count) = (50, 4, 64);
            let x = Tensor::f_arange(count * length * width, (Kind::Float, Device::Cpu))?;
            let x = x.f_add_scalar(first)?.f_square()?.f_sin()?.f_view([count, length, width])?;
            let last = x.f_narrow(1, length - 4, 4)?;
            let sums = last.f_sum_dim_intlist([1_i64, 2].as_slice(), false, Kind::Float)?;
            Batch::new(x, sums.f_unsqueeze(1)?)
        };
        Ok(DataModule::new("sequences", part(0)?, part(12_800)?, batch_size))
    }

    /// Checks that the measured values of a recurrent network are below 80 % of their bounds. Such
    /// a network rounds its states at each position of a sequence, and adds up the gradients of its
    /// weights in 16 bits.
    #[rstest]
    #[case::fused("Fused")]
    #[case::of_linear_layers("Steps")]
    fn recurrent_networks_are_within_their_bounds(
        #[case] name: &str,
        #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
    ) -> Result<()> {
        let registry = Registry::new(project!())
            .data_set(DataSet::new("sequences", sequences))
            .model(model!(Fused).data("sequences").judged_by_loss().margin(1.0).batch_size(16))
            .model(model!(Steps).data("sequences").judged_by_loss().margin(1.0).batch_size(16));
        let job = Job::new(name, precision, 3, Length::Epochs(1), Task::Conformance);
        let outcome = run(&job, &registry, &Deadline::default())?;
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
        for Checked { what, figure, bound, .. } in outcome.conformance.unwrap_or_default() {
            let share = figure.zip(bound).map(|(figure, bound)| figure / bound);
            assert!(share.is_some_and(|share| share < 0.8), "{what}: {share:?} of its bound");
        }
        Ok(())
    }

    /// A model whose first loss depends on the targets, but hardly on the model's output.
    #[derive(LightningModule)]
    #[forward(|x| Ok(head(x)?.f_mul_scalar(1e-4)?))]
    #[loss(with = |output, target| {
        let (output, target) = (output.f_to_kind(Kind::Float)?, target.f_to_kind(Kind::Float)?);
        loss::mse_loss(&output, &target)
    })]
    #[optimizer(sgd, lr = 0.1)]
    struct Faint {
        #[layer(linear(4, 1))]
        head: Linear,
    }

    /// Checks that a correct run stays within its bounds if its precision stores the targets in 16
    /// bits and the loss depends mainly on the targets.
    #[rstest]
    fn targets_may_be_rounded(
        #[values(Precision::F16True, Precision::Bf16True)] precision: Precision,
    ) -> Result<()> {
        let registry = Registry::new(project!())
            .data_set(DataSet::new("waves", waves))
            .model(model!(Faint).judged_by_loss().margin(1.0).batch_size(16));
        let job = Job::new("Faint", precision, 3, Length::Epochs(1), Task::Conformance);
        let outcome = run(&job, &registry, &Deadline::default())?;
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
        Ok(())
    }

    fn registry(size: f64) -> Registry {
        let hyperparameters = serde_json::json!({ "size": size });
        let model = model!(Net).hyperparameters(hyperparameters).judged_by_loss().margin(1.0);
        Registry::new(project!()).data_set(DataSet::new("waves", waves)).model(model.batch_size(16))
    }

    /// Checks that the first steps are compared with batch statistics if 32-true does not stay
    /// finite with running statistics.
    #[rstest]
    #[case::calm(1.0, "dropout and batch statistics")]
    #[case::diverging(1e15, "dropout, bounds")]
    fn batch_statistics_are_used_where_32_true_needs_them(
        #[case] size: f64,
        #[case] without: &str,
    ) -> Result<()> {
        let registry = registry(size);
        let job = Job::new("Net", Precision::Bf16Mixed, 3, Length::Epochs(1), Task::Conformance);
        let outcome = run(&job, &registry, &Deadline::default())?;
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
        let checked = outcome.conformance.unwrap_or_default();
        assert!(checked.iter().any(|checked| checked.what == "the update of the weights"));
        for Checked { over, .. } in checked {
            assert!(over.contains(&format!("without {without}")), "{over}");
            assert!(over.starts_with("6 steps of 16 examples"), "{over}");
        }
        Ok(())
    }
}
