//! A golden in a user's test.

use std::{
    env,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use amp_core::{
    Error, Result,
    hardware::{self, Fingerprint},
    precision::Precision,
};
use fixtures::models;

use super::{Agreement, Anchor, Golden, Spread, incomparable, machine, parse, table};
use crate::{
    case::{Case, Choices},
    matrix,
    view::Progress,
};

/// libtorch's random generator is the process's: two tests that draw from it at once would have
/// other weights each time.
static ALONE: Mutex<()> = Mutex::new(());

/// What a golden is taken of.
#[derive(Debug, Clone)]
pub struct Check {
    /// The device by name; `AMP_DEVICE` unless it is set here, else the CPU.
    pub device: Option<String>,
    /// The precisions besides 32-true.
    pub precisions: Vec<Precision>,
    /// The seeds; the first one's figures are kept, all give n and s.
    pub seeds: Vec<u64>,
    /// The spread over machines, where it was recorded; else the tolerances follow from the
    /// golden's own n and s.
    pub spread: Option<Spread>,
}

impl Default for Check {
    fn default() -> Self {
        Self {
            device: None,
            precisions: vec![Precision::F16Mixed, Precision::Bf16Mixed],
            seeds: (42..46).collect(),
            spread: None,
        }
    }
}

/// A golden to be given to insta.
pub struct Taken {
    /// The snapshot's name.
    pub name: String,
    /// Its body.
    pub text: String,
    /// insta's settings: folder and comparator.
    pub settings: insta::Settings,
}

impl Check {
    /// Runs the model for its quick epochs under every precision and seed.
    ///
    /// # Errors
    /// When a run fails or there is no such model or device.
    pub fn golden(&self, model: &str) -> Result<Golden> {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let own = env::var("AMP_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
        let device = hardware::parse_device(self.device.as_ref().unwrap_or(&own))?;
        let model = models::find(model)?;
        let runs = matrix::plan(&self.precisions).len();
        let run = |seed: &u64| {
            let epochs = Some(model.quick_epochs);
            let choices = Choices { epochs, seed: *seed, ..Choices::default() };
            let case = Case::new(model, choices, device)?;
            let comparison = matrix::run(&case, &self.precisions, &mut Progress::hidden(runs))?;
            Ok((comparison, case.data.val.len()))
        };
        let taken = self.seeds.iter().map(run).collect::<Result<Vec<_>>>()?;
        let examples = taken.first().map_or(1, |(_, examples)| *examples);
        let comparisons: Vec<_> = taken.into_iter().map(|(comparison, _)| comparison).collect();
        Golden::over_seeds(&comparisons, model.margin, examples)
    }

    /// Takes the golden and holds it against its anchor in `folder`; the rest is insta's.
    ///
    /// # Panics
    /// When a run fails, or a figure is further from its anchor than the budget: it is a test's
    /// assertion.
    pub fn take(&self, model: &str, folder: &str) -> Taken {
        match self.prepare(model, folder) {
            Ok(taken) => taken,
            Err(error) => panic!("{error}"),
        }
    }

    fn prepare(&self, model: &str, folder: &str) -> Result<Taken> {
        let folder = env::var_os("AMP_GOLDENS").map_or_else(|| folder.into(), PathBuf::from);
        let golden = self.golden(model)?;
        let agreement = Agreement { spread: self.spread.clone(), memory: true };
        let name = file_name(model, golden.fingerprint.as_ref());
        let snapshot = folder.join(format!("{name}.snap"));
        // One of another form agrees with nothing: insta shows both.
        let known = std::fs::read_to_string(&snapshot).ok().and_then(|text| parse(&text).ok());
        match (known.as_ref().and_then(|golden| golden.fingerprint.as_ref()), &golden.fingerprint) {
            (Some(known), Some(own)) => {
                if let Some(why) = incomparable(known, own) {
                    return Err(Error::config(why));
                }
            }
            _ => eprintln!("NOT COMPARABLE: there is no golden {name} yet"),
        }
        let ci = env::var("CI").is_ok_and(|value| !value.is_empty());
        let path = folder.join(format!("{name}.anchor.json"));
        let anchor = Anchor::load_or_create(&path, &golden, &agreement, !ci)?;
        let exceeded = anchor.exceeded(&golden);
        if !exceeded.is_empty() {
            return Err(Error::config(format!(
                "{name} has drifted beyond its budget:\n{}\nif that is intended, delete {} and \
                 say why in the commit",
                table(&exceeded),
                path.display()
            )));
        }
        let mut settings = insta::Settings::clone_current();
        settings.set_comparator(Box::new(agreement));
        settings.set_snapshot_path(folder);
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        let text = serde_json::to_string_pretty(&golden)
            .map_err(|error| Error::io("golden", error.into()))?;
        Ok(Taken { name, text, settings })
    }
}

/// `MixedPrecisionDemo` on a CPU: `mixed_precision_demo_cpu`.
pub fn file_name(model: &str, fingerprint: Option<&Fingerprint>) -> String {
    let mut name = String::new();
    let letters: Vec<char> = model.chars().collect();
    for (at, letter) in letters.iter().enumerate() {
        let after_small = at > 0 && !letters[at - 1].is_uppercase();
        let before_small = letters.get(at + 1).is_some_and(|next| !next.is_uppercase());
        if at > 0 && letter.is_uppercase() && (after_small || before_small) {
            name.push('_');
        }
        name.extend(letter.to_lowercase());
    }
    let machine = fingerprint.map_or("cpu".to_owned(), machine);
    format!("{name}_{machine}")
}

/// Runs a model under every precision and holds what comes out against its golden, an insta
/// snapshot in `tests/goldens` of the calling crate with an anchor beside it:
///
/// ```no_run,standalone_crate
/// #[test]
/// fn mixed_precision_demo() {
///     amp_verify::verify!(MixedPrecisionDemo);
/// }
/// ```
///
/// A second argument is a [`Check`] with other seeds or precisions. Figures that moved are printed
/// as a table; `cargo insta review` accepts them.
#[macro_export]
macro_rules! verify {
    ($model:ident) => {
        $crate::verify!($model, $crate::golden::Check::default())
    };
    ($model:ident, $check:expr) => {{
        let folder = ::std::concat!(::std::env!("CARGO_MANIFEST_DIR"), "/tests/goldens");
        let taken = $crate::golden::Check::take(&$check, ::std::stringify!($model), folder);
        taken.settings.bind(|| $crate::__private::insta::assert_snapshot!(taken.name, taken.text));
    }};
}
