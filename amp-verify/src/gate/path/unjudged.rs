//! The stages in which the gate checks the steps of a training run against its rules. If the time
//! limit ends the checks early, reports list the rules of the remaining stages as not judged.

use super::run::Setup;
use crate::gate::{checked::Findings, deadline::OVER, reason::Reason};

/// A stage of the gate's check of the training path, and the rules that are judged in it.
pub(super) struct Stage {
    pub(super) name: &'static str,
    rules: &'static [Reason],
    /// Returns whether this stage of the check runs on the device and under the precision.
    runs: fn(&Setup<'_>) -> bool,
}

const ALWAYS: fn(&Setup<'_>) -> bool = |_| true;

/// All stages of the check, in the order in which they run.
pub(super) const STAGES: &[Stage] = &[
    Stage { name: "an unobserved epoch", rules: &[Reason::Batches, Reason::Memory], runs: ALWAYS },
    Stage {
        name: "the device compared with the CPU",
        rules: &[Reason::Gradient],
        runs: |setup| setup.case.trainer.device.is_cuda(),
    },
    Stage { name: "each layer alone", rules: &[Reason::Rounding, Reason::Width], runs: ALWAYS },
    Stage {
        name: "fused layers",
        rules: &[Reason::Fusion],
        runs: |setup| setup.case.trainer.device.is_cuda(),
    },
    Stage {
        name: "an observed epoch",
        rules: &[
            Reason::Watching,
            Reason::Gradient,
            Reason::Update,
            Reason::Schedule,
            Reason::Buffers,
            Reason::Dropout,
        ],
        runs: ALWAYS,
    },
    Stage { name: "validation", rules: &[Reason::Validation], runs: ALWAYS },
    Stage {
        name: "clipped steps and resuming",
        rules: &[Reason::Watching, Reason::Update, Reason::Resume],
        runs: ALWAYS,
    },
    Stage {
        name: "overflowing steps",
        rules: &[Reason::Watching, Reason::Scale, Reason::Skip],
        runs: |setup| setup.precision.scales_loss(),
    },
];

/// Records that the time limit ended the check after the first `ended` stages: the rules of the
/// other stages were not judged.
pub(super) fn unjudged(setup: &Setup<'_>, ended: usize, findings: &mut Findings) {
    for stage in STAGES[ended..].iter().filter(|stage| (stage.runs)(setup)) {
        for rule in stage.rules {
            findings.left_out(*rule, &format!("{}: {OVER}", stage.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use amp_core::{
        data::{Batch, DataModule},
        precision::Precision,
        prelude::*,
    };
    use rstest::rstest;

    use super::*;
    use crate::{
        DataSet, Registry,
        gate::{Task, budget::Budget, deadline::Deadline, job::Job},
        length::Length,
        model, project,
    };

    #[derive(LightningModule)]
    #[forward(|x| head(x))]
    #[loss(mse_loss)]
    #[optimizer(sgd, lr = 0.1)]
    struct Net {
        #[layer(linear(4, 1))]
        head: Linear,
    }

    fn ones(batch_size: i64) -> Result<DataModule> {
        let part = || {
            let ones = |width: i64| Tensor::f_ones([8, width], (Kind::Float, Device::Cpu));
            Batch::new(ones(4)?, ones(1)?)
        };
        Ok(DataModule::new("ones", part()?, part()?, batch_size))
    }

    fn registry() -> Registry {
        let model = model!(Net).judged_by_loss().margin(1.0).batch_size(4);
        Registry::new(project!()).data_set(DataSet::new("ones", ones)).model(model)
    }

    fn job(task: Task, precision: Precision) -> Job {
        Job::new("Net", precision, 1, Length::Epochs(1), task)
    }

    /// Checks that, if the time limit ends the check after `ended` stages, the rules of all later
    /// stages that run on a CPU under this precision are listed as not judged. Only their number is
    /// compared.
    #[rstest]
    #[case::all(0, Precision::F16Mixed, 17)]
    #[case::unscaled(0, Precision::Bf16Mixed, 14)]
    #[case::last(7, Precision::F16Mixed, 3)]
    #[case::no_last(7, Precision::Bf16Mixed, 0)]
    #[case::none(8, Precision::F16Mixed, 0)]
    fn what_is_not_judged_is_listed(
        #[case] ended: usize,
        #[case] precision: Precision,
        #[case] expected: usize,
    ) -> Result<()> {
        let job = job(Task::Path, precision);
        let case = job.case(&registry(), precision)?;
        let budget = Budget::of(&case, 1)?;
        let deadline = Deadline::default();
        let setup = Setup { job: &job, case: &case, precision, budget, deadline: &deadline };
        let mut findings = Findings::default();
        unjudged(&setup, ended, &mut findings);
        assert_eq!(findings.checked.len(), expected, "{:?}", findings.checked);
        assert!(findings.checked.iter().all(|checked| checked.what.ends_with(OVER)));
        Ok(())
    }

    /// Checks that a job whose deadline has passed ends without failures, and that each rule of the
    /// job is listed as not judged.
    #[test]
    fn a_run_ends_with_its_time() -> Result<()> {
        let deadline = Deadline::within(Some(Duration::ZERO));
        let outcome =
            super::super::run(&job(Task::Path, Precision::F16Mixed), &registry(), &deadline)?;
        assert!(outcome.ended && outcome.failures.is_empty(), "{outcome:?}");
        let checked = outcome.path.map(|path| path.checked).unwrap_or_default();
        let rules: BTreeSet<Reason> = checked.iter().map(|checked| checked.rule).collect();
        assert!(checked.iter().all(|checked| !checked.is_done()), "{checked:?}");
        // The rule for fused layers is left out, because layers are fused only on a GPU.
        let expected = super::super::report::RULES.iter().filter(|own| **own != Reason::Fusion);
        assert_eq!(rules, expected.copied().collect());
        for task in [Task::Conformance, Task::Path, Task::Frozen] {
            let job = job(task, Precision::F16Mixed);
            assert!(job.execute_within(&registry(), Some(Duration::ZERO)).ended);
        }
        Ok(())
    }
}
