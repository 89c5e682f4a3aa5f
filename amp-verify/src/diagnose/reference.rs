//! The reference file of a diagnosis has the results of an earlier run under 32-true. If a new run
//! under 32-true gives other results, the environment has changed. The failure then says nothing
//! about the precision.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use amp_core::{Error, Hyperparameters, Result, precision::Precision};

use super::checks::train;
use crate::{
    case::Case,
    comparison::Comparison,
    golden::{self, Agreement, Figures, Golden, incomparable},
};

/// A file with the results of an earlier run of 32-true.
pub(super) struct Reference {
    path: PathBuf,
    known: Known,
}

enum Known {
    /// A report that `verify --output` wrote on this machine. The new results must be equal to it
    /// to the last bit.
    Report(Box<Comparison>),
    /// A golden (the recorded results of a test) from a machine of the same kind. The new results
    /// must agree with it within the golden's tolerances.
    Golden(Box<Golden>),
}

/// The command-line options that must be the same in the earlier run and in the new run.
struct Options<'a> {
    model: &'a str,
    data: &'a str,
    seed: Option<u64>,
    epochs: i64,
    batch_size: i64,
    hyperparameters: &'a Hyperparameters,
}

impl fmt::Display for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, data, seed, epochs, batch_size, hyperparameters } = self;
        write!(f, "--model {model} --data {data}")?;
        seed.map_or(Ok(()), |seed| write!(f, " --seed {seed}"))?;
        write!(f, " --epochs {epochs} --batch-size {batch_size}")?;
        hyperparameters.iter().try_for_each(|(name, value)| write!(f, " --set {name}={value}"))
    }
}

impl<'a> From<&'a Comparison> for Options<'a> {
    fn from(report: &'a Comparison) -> Self {
        let subject = &report.subject;
        Self {
            model: &subject.run.model,
            data: &subject.run.data,
            seed: Some(subject.run.seed),
            epochs: subject.max_epochs,
            batch_size: report.batch_size,
            hyperparameters: &subject.run.hyperparameters,
        }
    }
}

impl<'a> From<&'a Golden> for Options<'a> {
    fn from(golden: &'a Golden) -> Self {
        Self {
            model: &golden.model,
            data: &golden.data,
            seed: golden.seeds.first().copied(),
            epochs: golden.epochs,
            batch_size: golden.batch_size,
            hyperparameters: &golden.hyperparameters,
        }
    }
}

impl Reference {
    /// Reads the results of an earlier run: an output of `verify --output`, or a golden (the
    /// recorded results of a test).
    ///
    /// # Errors
    /// When the file is missing, or is neither of the two.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
        let known = match (serde_json::from_str(&text), golden::parse(&text)) {
            (Ok(report), _) => Known::Report(report),
            (_, Ok(golden)) => Known::Golden(Box::new(golden)),
            (Err(error), Err(golden)) => {
                return Err(Error::config(format!(
                    "{}: it is neither a report of verify ({error}) nor a golden ({golden}); write \
                     it with `cargo amp verify --output` and the same options",
                    path.display()
                )));
            }
        };
        Ok(Self { path: path.to_owned(), known })
    }

    /// Trains the model under 32-true. Returns whether the results differ from those in the file.
    /// # Errors
    /// When training fails, or the reference was recorded on another machine or with other options
    /// than the new run.
    pub(super) fn moved(&self, case: &Case) -> Result<bool> {
        let record = train(case, Precision::F32True)?;
        let now = Comparison::new(vec![record], case.model.judge, case.data.batch_size);
        let refuse = |why: String| format!("{}: {why}", self.path.display());
        let here = &now.subject.run.fingerprint;
        let unlike = match &self.known {
            Known::Report(report) if report.subject.run.fingerprint != *here => Some(
                "NOT COMPARABLE: the results are from another machine or from other settings"
                    .to_owned(),
            ),
            Known::Report(_) => None,
            Known::Golden(golden) => match &golden.fingerprint {
                Some(known) => incomparable(known, here),
                None => Some(
                    "NOT COMPARABLE: the golden does not record the machine on which it was made"
                        .to_owned(),
                ),
            },
        };
        if let Some(why) = unlike {
            return Err(Error::NotComparable(refuse(why)));
        }
        let (then, own) = (self.options().to_string(), Options::from(&now).to_string());
        if then != own {
            let why = format!("the results were made with `{then}`, but this run has `{own}`");
            return Err(Error::config(refuse(why)));
        }
        Ok(match &self.known {
            Known::Report(report) => {
                let figures = |report: &Comparison| {
                    report.runs.first().map(|baseline| (baseline.accuracy, baseline.loss))
                };
                figures(report) != figures(&now)
            }
            Known::Golden(golden) => {
                let mut found = golden.as_ref().clone();
                found.runs.insert(Precision::F32True.name().into(), Figures::from(&now.runs[0]));
                // Peak memory is not compared, because a difference in memory does not mean that
                // results have changed.
                let agreement = Agreement { spread: None, memory: false };
                !agreement.moved(golden, &found).is_empty()
            }
        })
    }

    fn options(&self) -> Options<'_> {
        match &self.known {
            Known::Report(report) => report.as_ref().into(),
            Known::Golden(golden) => golden.as_ref().into(),
        }
    }
}
