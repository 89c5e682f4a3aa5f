//! Checks on full runs that are made before the statistical test: whether the compared runs started
//! from the same weights and data, whether their peak memory is similar, and whether the model
//! learned.

use amp_core::{
    Result,
    memory::show_bytes,
    precision::Precision,
    tch::{Device, Kind, Tensor},
};

use super::{
    checked::{Checked, Findings, Unit},
    controls::Untrained,
    outcome::Outcome,
    plan::{Plan, Subject},
    reason::{Failure, Reason},
};
use crate::{draws, text::percent, verdict::mean};

/// The largest relative error of an f32 matrix product that the gate accepts from the baseline. In
/// TF32, the error is about 1e-4.
const F32_PRODUCT: f64 = 1e-5;
/// The largest accepted fraction of validation examples that are also training examples. It is not
/// zero, because in real data the same text or image may occur twice.
const OVERLAP: f64 = 0.05;
/// The largest accepted peak memory under a precision, as a multiple of the peak memory under
/// 32-true. For 64-true, the multiple is doubled, because its weights are twice as wide. If the
/// precision keeps a converted copy of the data, the size of the copy is added to the limit.
const MEMORY: f64 = 2.0;
/// The peak memory that a precision may use on CUDA in addition to the multiple [`MEMORY`], in
/// bytes. cuBLAS and other libraries allocate a workspace on their first call, which may be in the
/// precision's run.
const WORKSPACES: f64 = (1_u64 << 28) as f64;

/// The full runs under a precision and under 32-true, one of each for each seed.
pub(super) struct Runs<'a> {
    pub(super) plan: &'a Plan,
    pub(super) model: &'a Subject,
    pub(super) precision: Precision,
    /// The metric of the control runs under 32-true, in which no weight changes.
    pub(super) untrained: &'a Untrained,
    pub(super) baseline: &'a [Outcome],
    pub(super) own: &'a [Outcome],
}

/// What to do if a model does not learn under 32-true either, so that the precision is not the cause.
const TO_LEARN: &str = "; if the model needs more steps, declare them in the registry with `.epochs(…)`, \
                        and with `.quick_epochs(…)` for the quick tier; if a smaller gain is enough, \
                        declare it with `.learns_by(…)`";

impl Runs<'_> {
    /// Checks TF32, the initial weights and data, peak memory, and whether the model learned.
    pub(super) fn check(&self) -> Findings {
        let mut findings = Findings::default();
        self.products(&mut findings);
        self.pairing(&mut findings);
        self.memory(&mut findings);
        let (checked, failure) = learning(self.model, self.untrained, self.baseline, "32-true's ");
        findings.checked.extend(checked);
        findings
            .failures
            .extend(failure.map(|failure| Failure { text: failure.text + TO_LEARN, ..failure }));
        let (checked, failure) = learning(self.model, self.untrained, self.own, "");
        findings.checked.extend(checked);
        findings.failures.extend(failure);
        findings
    }

    /// Checks whether the 32-true baseline used TF32 although the user did not allow it.
    fn products(&self, findings: &mut Findings) {
        let errors = self.baseline.iter().filter_map(|outcome| outcome.product_error);
        let error = errors.fold(0.0, f64::max);
        if self.plan.tf32 {
            findings.left_out(
                Reason::PrecisionDidNotRun,
                "the error of f32 matrix products: --tf32 permits TF32",
            );
            return;
        }
        let what = "32-true: error of a product of f32 matrices";
        let figure = (error, F32_PRODUCT);
        let checked = Checked::at_most(
            Reason::PrecisionDidNotRun,
            what,
            "all seeds' runs",
            Unit::Share,
            figure,
        );
        if checked.is_broken() {
            let text = format!(
                "the baseline: the relative error of f32 matrix products is {error:.1e}, as large as in \
                 TF32: something has turned TF32 on"
            );
            findings.fail(Reason::PrecisionDidNotRun, text);
        }
        findings.checked.push(checked);
    }

    /// Checks that the runs with the same seed under the precision and under 32-true had the same
    /// initial weights, order of examples, validation set and settings. Also checks that hardly any
    /// example of the validation set is a training example (at most the fraction [`OVERLAP`]).
    fn pairing(&self, findings: &mut Findings) {
        let differ = |different: &dyn Fn(&Outcome, &Outcome) -> bool| {
            self.baseline.iter().zip(self.own).any(|(base, own)| different(base, own))
        };
        let wrong = if differ(&|base, own| !own.is_paired(base, self.precision)) {
            let text =
                "initial weights, order of examples or validation set differ from the baseline's";
            Some(text.to_owned())
        } else if differ(&|base, own| base.fingerprint != own.fingerprint) {
            let text =
                "the baseline ran with other settings: TF32, deterministic algorithms or device";
            Some(text.to_owned())
        } else {
            None
        };
        let is_paired = wrong.is_none();
        let what = "initial weights, order of examples, validation set and settings";
        findings.equal(Reason::NotPaired, what, "all seeds' runs", wrong);
        let overlap = self.own.iter().filter_map(|outcome| outcome.overlap).fold(0.0, f64::max);
        let what = "validation examples that are training examples";
        let figure = (overlap, OVERLAP);
        let checked = Checked::at_most(Reason::Contaminated, what, "the data", Unit::Share, figure);
        if checked.is_broken() && is_paired {
            let text = format!(
                "{} of the validation set are training examples: remove them from one of the two sets",
                percent(overlap)
            );
            findings.fail(Reason::Contaminated, text);
        }
        findings.checked.push(checked);
    }

    /// Checks that the peak memory under the precision is not much larger than under 32-true.
    fn memory(&self, findings: &mut Findings) {
        let (Some(first), Some(own)) = (self.baseline.first(), self.own.first()) else { return };
        let (base_data, own_data) = (first.data_bytes, own.data_bytes);
        let (base, own) = (first.peak_memory_bytes, own.peak_memory_bytes);
        let width = self.precision.storage().elt_size_in_bytes() as f64 / 4.0;
        let is_cuda = first.fingerprint.as_ref().is_some_and(|f| f.capability.contains('.'));
        // On a CPU, a run copies the data only if its precision stores batches in another dtype
        // than the data set's.
        let data = own_data.saturating_sub(base_data) as f64;
        let workspaces = if is_cuda { WORKSPACES } else { 0.0 };
        let most = MEMORY * width.max(1.0) * base as f64 + data + workspaces;
        let what = format!("peak memory of tensors; under 32-true it is {}", show_bytes(base));
        let figure = (own as f64, most);
        let checked =
            Checked::at_most(Reason::Memory, what, "the first seed's run", Unit::Bytes, figure);
        if checked.is_broken() {
            let (own, base) = (show_bytes(own), show_bytes(base));
            findings.fail(
                Reason::Memory,
                format!("the peak memory is {own}; that of 32-true is {base}"),
            );
        }
        findings.checked.push(checked);
    }
}

/// Returns a failure if the model draws random numbers in one dtype under the precision (`path`)
/// and in another dtype under 32-true (`control`). The two runs of a seed then use different random
/// numbers, so neither their metrics nor their gradients can be compared.
pub(super) fn draws_otherwise(control: &Outcome, path: &Outcome) -> Option<Failure> {
    let (draws, base) = (&path.observed.draws, &control.observed.draws);
    let text = draws::difference(draws, Precision::F32True, base)?;
    Some(Failure::new(Reason::NotPaired, text))
}

/// Checks that the model has learned: the mean metric of the runs must be better than that of the
/// control runs by at least `learns_by`. Runs whose metric is not finite are left out.
pub(super) fn learning(
    model: &Subject,
    untrained: &Untrained,
    runs: &[Outcome],
    whose: &str,
) -> (Option<Checked>, Option<Failure>) {
    let metrics: Vec<f64> = runs.iter().filter_map(|outcome| outcome.metric).collect();
    let control = match untrained {
        Ok(metric) => *metric,
        Err(cause) => {
            let text = format!("the control run, in which no weight changes, failed: {cause}");
            return (None, Some(Failure::new(Reason::DidNotLearn, text)));
        }
    };
    let reached = mean(&metrics);
    let gained = model.judge.direction.regression(reached, control);
    let name = model.judge.name;
    let checked = Checked::at_most(
        Reason::DidNotLearn,
        format!("{whose}{name}: how much better than {control:.3}, its value without training"),
        "mean of all seeds' runs",
        Unit::AtLeast,
        (gained, model.learns_by),
    );
    let failure = checked.is_broken().then(|| {
        let text = format!(
            "{whose}{name} is {reached:.3}, not at least {} better than {control:.3}, its value \
             without training",
            model.learns_by
        );
        Failure::new(Reason::DidNotLearn, text)
    });
    (Some(checked), failure)
}

/// Returns the relative error of a matrix product in f32 on this device: about 1e-7 in f32 and 1e-4
/// in TF32. The error shows whether TF32 was used, whichever setting turned it on.
///
/// # Errors
/// When libtorch fails.
pub fn product_error(device: Device) -> Result<f64> {
    const SIZE: i64 = 256;
    // The matrices contain sines and cosines of 0, 1, 4, 9, …, because random numbers would change
    // the state of the training run's generator. With sines of 0, 1, 2, 3, …, the products within a
    // dot product would nearly cancel, and the relative error would be ten times as large.
    let phases = Tensor::f_arange(SIZE * SIZE, (Kind::Double, device))?.f_square()?;
    let phases = phases.f_view([SIZE, SIZE])?;
    let [a, b] = [phases.f_sin()?, phases.f_cos()?].map(|m| m.f_to_kind(Kind::Float));
    let (a, b) = (a?, b?);
    let exact = a.f_to_kind(Kind::Double)?.f_matmul(&b.f_to_kind(Kind::Double)?)?;
    let error = a.f_matmul(&b)?.f_to_kind(Kind::Double)?.f_sub(&exact)?;
    Ok(error.f_norm()?.f_double_value(&[])? / exact.f_norm()?.f_double_value(&[])?)
}

#[cfg(test)]
mod tests {
    use amp_core::prelude::*;
    use rstest::rstest;

    use clap::Parser;

    use super::*;
    use crate::{
        DataSet, Registry,
        gate::{GateArgs, Task, job::Job, waves::waves},
        length::Length,
        model, project,
    };

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        gate: GateArgs,
    }

    /// A model that adds noise in training. If `right` is true, it draws the noise with the
    /// context's `randn_like`, which draws in f32 under every precision. Otherwise it draws the
    /// noise with libtorch's `randn_like`, in the dtype of the layer's output.
    #[derive(LightningModule)]
    #[forward(|x| {
        let x = body(x)?;
        let noise = match (cx.is_training(), self.right) {
            (true, true) => cx.randn_like(&x)?,
            (true, false) => x.f_randn_like()?,
            (false, _) => x.f_zeros_like()?,
        };
        head(&x.f_add(&noise)?)
    })]
    #[loss(mse_loss)]
    #[optimizer(sgd, lr = 0.01)]
    struct Noisy {
        #[hparam(default = false)]
        right: bool,
        #[layer(linear(4, 8))]
        body: Linear,
        #[layer(linear(8, 1))]
        head: Linear,
    }

    /// Checks that a model fails if its noise is bfloat16 under bf16-mixed, but float32 under
    /// 32-true. If the model draws the noise with the context's `randn_like`, it passes this check
    /// and the check of the gradients.
    #[rstest]
    #[case::right(true, None)]
    #[case::like(false, Some("draws bfloat16 numbers, but float32 numbers under 32-true"))]
    fn draws_in_another_dtype_are_named(
        #[case] right: bool,
        #[case] expected: Option<&str>,
    ) -> Result<()> {
        let model = model!(Noisy).hyperparameters(serde_json::json!({ "right": right }));
        let model = model.judged_by_loss().margin(1.0).batch_size(8);
        let registry =
            Registry::new(project!()).data_set(DataSet::new("waves", waves)).model(model);
        let run = |precision, task| {
            Job::new("Noisy", precision, 3, Length::Epochs(1), task).execute(&registry)
        };
        let control = run(Precision::F32True, Task::Frozen);
        let path = run(Precision::Bf16Mixed, Task::Path);
        let failure = draws_otherwise(&control, &path);
        assert_eq!(failure.is_some(), expected.is_some());
        for (failure, expected) in failure.iter().zip(expected) {
            assert_eq!(failure.reason, Reason::NotPaired);
            assert!(failure.text.contains(expected), "{}", failure.text);
            assert!(failure.reason.rule().is_some());
        }
        let broken = path.failures.iter().any(|failure| failure.reason == Reason::Gradient);
        assert_eq!(broken, expected.is_some(), "{:?}", path.failures);
        Ok(())
    }

    /// Checks that a model that does not learn under 32-true fails with the declarations that help.
    /// Under another precision alone, that precision is the cause, and the text has no advice.
    #[test]
    fn a_model_that_does_not_learn_is_told_what_to_declare() -> Result<()> {
        let model = model!(Noisy).judged_by_loss().margin(1.0).learns_by(1e6).batch_size(8);
        let registry =
            Registry::new(project!()).data_set(DataSet::new("waves", waves)).model(model);
        let model = Subject::new(&registry, registry.find(None)?)?;
        let job = Job::new("Noisy", Precision::F32True, 3, Length::Epochs(1), Task::Train);
        let runs = [job.execute(&registry)];
        let line = Line::parse_from(["gate", "--device", "cpu"]);
        let runs = Runs {
            plan: &Plan::new(&registry, &line.gate)?,
            model: &model,
            precision: Precision::F32True,
            untrained: &Ok(1.0),
            baseline: &runs,
            own: &runs,
        };
        let failures = runs.check().failures;
        let learned = failures.iter().filter(|failure| failure.reason == Reason::DidNotLearn);
        let [base, own] = learned.collect::<Vec<_>>()[..] else { panic!("{failures:?}") };
        assert!(base.text.starts_with("32-true's val_loss is"), "{}", base.text);
        for advice in [".epochs(…)", ".quick_epochs(…)", ".learns_by(…)"] {
            assert!(base.text.contains(advice), "{}", base.text);
            assert!(!own.text.contains(advice), "{}", own.text);
        }
        Ok(())
    }

    /// Checks that a run under 64-true on a CPU reports the size of its copies of the data. The
    /// training and the validation set have 64 rows each, with five 8-byte numbers per row. A run
    /// under 32-true copies nothing.
    #[test]
    fn copies_of_the_data_are_counted() {
        let model = model!(Noisy).judged_by_loss().margin(1.0).batch_size(8);
        let registry =
            Registry::new(project!()).data_set(DataSet::new("waves", waves)).model(model);
        let bytes = |precision| {
            let job = Job::new("Noisy", precision, 3, Length::Epochs(1), Task::Train);
            job.execute(&registry).data_bytes
        };
        let copies = 2 * 64 * 5 * 8;
        assert_eq!([Precision::F32True, Precision::F64True].map(bytes), [0, copies]);
    }
}
