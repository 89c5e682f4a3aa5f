//! Trains a model in a test, and records the results as a golden or compares them with the recorded
//! golden.

use std::{env, fs, path, path::Path, slice};

use amp_core::{
    Error, Result,
    event::Event,
    hardware::{self, Fingerprint},
    random,
    tch::{self, Device},
};

use super::{Agreement, Anchor, Golden, Spread, Target, incomparable, machine, parse, table};
use crate::matrix;

/// New results, in the form in which the library insta compares them with the recorded snapshot.
pub struct Taken {
    /// The name of the insta snapshot.
    pub name: String,
    /// The text of the insta snapshot.
    pub text: String,
    /// The settings for insta: the folder of the snapshot, and how two snapshots are compared.
    pub settings: insta::Settings,
}

impl Target {
    /// Trains the model under every precision with every seed. On CUDA, requests deterministic
    /// algorithms, switches TF32 off and loads no batches ahead. So machines with the same compute
    /// capability run the same kernels, and peak memory does not depend on timing.
    ///
    /// # Errors
    /// When a training run fails, or the model or the device does not exist.
    pub fn golden(&self) -> Result<Golden> {
        self.golden_like(|_| None)
    }

    /// Trains the model as [`golden`](Self::golden) does, but stops after the first seed if its
    /// results agree with the recorded golden. (The other seeds are needed only for the number of
    /// seeds, the standard deviation and the power, which are then taken from the recorded golden.)
    /// `known` returns the recorded golden for the results of the first seed.
    ///
    /// # Errors
    /// When a training run fails, or the model or the device does not exist.
    pub fn golden_like(&self, known: impl Fn(&Golden) -> Option<Golden>) -> Result<Golden> {
        // Other threads that train or draw random numbers wait until this function returns. This is
        // necessary because numeric switches and random generators belong to the whole process.
        let _alone = random::seeded(self.first_seed())?;
        let device = self.device()?;
        hardware::set_numerics(false, device.is_cuda())?;
        // Each operation runs on one thread. The models in tests are too small to gain from a
        // second one, and if other processes use the cores, two threads that wait for each other
        // take ten times as long as one.
        let threads = tch::get_num_threads();
        tch::set_num_threads(1);
        let taken = self.over_seeds(device, known);
        tch::set_num_threads(threads);
        if device.is_cuda() {
            hardware::set_numerics(false, false)?;
        }
        taken
    }

    /// Returns the device on which the model of the golden test is trained.
    pub(super) fn device(&self) -> Result<Device> {
        let own = env::var("AMP_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
        hardware::parse_device(self.check.device.as_ref().unwrap_or(&own))
    }

    /// Returns the first seed, whose results are recorded.
    pub(super) fn first_seed(&self) -> u64 {
        self.check.seeds.first().copied().unwrap_or_default()
    }

    /// Returns the description of the machine, including the settings of TF32 and deterministic
    /// algorithms with which golden tests train.
    pub(super) fn fingerprint(&self) -> Result<Fingerprint> {
        let device = self.device()?;
        let deterministic = device.is_cuda();
        Ok(Fingerprint { tf32: false, deterministic, ..Fingerprint::of(device)? })
    }

    fn over_seeds(
        &self,
        device: Device,
        known: impl Fn(&Golden) -> Option<Golden>,
    ) -> Result<Golden> {
        let (mut case, margin) = self.prototype(device)?;
        if device.is_cuda() {
            // Without prefetching, the number of batches on the device does not depend on timing.
            (case.data.loading.prefetch, case.data.loading.num_workers) = (Some(0), 0);
        }
        let precisions = &self.check.precisions;
        let mut taken = Vec::with_capacity(self.check.seeds.len());
        for seed in &self.check.seeds {
            let mut case = case.clone();
            case.trainer.seed = *seed;
            taken.push(matrix::run(&case, precisions, &mut |_: &Event| Ok(()))?);
            if let [first] = taken.as_slice() {
                let first = slice::from_ref(first);
                let first = Golden::over_seeds(first, margin, case.data.val.examples())?;
                if let Some(whole) = known(&first).and_then(|known| self.completed(first, &known)) {
                    return Ok(whole);
                }
            }
        }
        Golden::over_seeds(&taken, margin, case.data.val.examples())
    }

    /// Completes the results of the first seed with the recorded golden's statistics over all
    /// seeds. Returns `None` if the results of the first seed do not agree with the recorded
    /// golden.
    fn completed(&self, mut first: Golden, known: &Golden) -> Option<Golden> {
        first.seeds.clone_from(&self.check.seeds);
        for (precision, figures) in &mut first.runs {
            figures.paired = known.runs.get(precision)?.paired;
        }
        self.agreement().moved(known, &first).is_empty().then_some(first)
    }

    fn agreement(&self) -> Agreement {
        Agreement { spread: self.check.spread.clone(), memory: true }
    }

    /// Reads the spread (the recorded differences between machines) of the golden `name` from
    /// `folder`. Returns a copy of this target with this spread. If the target already has a
    /// spread, the file is not read.
    ///
    /// # Errors
    /// When the spread file is damaged.
    pub(super) fn with_recorded_spread(&self, folder: &Path, name: &str) -> Result<Self> {
        let mut target = self.clone();
        if target.check.spread.is_none() {
            target.check.spread = Spread::read(&folder.join(format!("{name}.spread.json")))?;
        }
        Ok(target)
    }

    /// Reads the recorded results (the golden) of this model from the folder. The file's name
    /// contains the kind of the machine, which is taken from the new results, `found`. Returns
    /// `None` if there is no golden, or if its format is too old to be parsed. (insta then compares
    /// the texts, and shows both.)
    pub(super) fn known(&self, found: &Golden, folder: &Path) -> Option<Golden> {
        let name = self.file_name(found.fingerprint.as_ref());
        let text = fs::read_to_string(folder.join(format!("{name}.snap"))).ok()?;
        parse(&text).ok()
    }

    /// Compares new results with the anchor (the first recording) in `folder`, and prepares insta's
    /// comparison with the recorded golden. If the anchor is missing and `may_write` is true,
    /// writes the anchor.
    ///
    /// # Errors
    /// When the recorded golden is from another kind of machine or has no anchor, a value differs
    /// from the anchor by more than its budget, or the spread file cannot be parsed.
    pub fn prepare(&self, golden: &Golden, folder: &Path, may_write: bool) -> Result<Taken> {
        // insta resolves a relative path from the test's source file.
        let folder = path::absolute(folder).map_err(|error| Error::io(folder, error))?;
        let name = self.file_name(golden.fingerprint.as_ref());
        let agreement = self.with_recorded_spread(&folder, &name)?.agreement();
        let snapshot = folder.join(format!("{name}.snap"));
        let path = folder.join(format!("{name}.anchor.json"));
        let known = self.known(golden, &folder);
        let known = known.as_ref().and_then(|golden| golden.fingerprint.as_ref());
        if let Some((known, own)) = known.zip(golden.fingerprint.as_ref())
            && let Some(why) = incomparable(known, own)
        {
            return Err(Error::NotComparable(why));
        }
        // Skipped if neither the golden nor its anchor (the first recording) exists and no file may
        // be written. Then insta fails the test and keeps the new snapshot for review.
        if snapshot.exists() || path.exists() || may_write {
            let anchor = Anchor::load_or_create(&path, golden, &agreement, may_write)?;
            let exceeded = anchor.exceeded(golden);
            if !exceeded.is_empty() {
                return Err(Error::config(format!(
                    "{name}: values differ from the first recording by more than their \
                     budget:\n{}\nif this is intended, delete {} and give the reason in the commit",
                    table(&exceeded),
                    path.display()
                )));
            }
        }
        let mut settings = insta::Settings::clone_current();
        settings.set_comparator(Box::new(agreement));
        settings.set_snapshot_path(folder);
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        let text = serde_json::to_string_pretty(golden)
            .map_err(|error| Error::io("golden", error.into()))?;
        Ok(Taken { name, text, settings })
    }
}

/// Returns the name of the file of recorded results (the golden) without its extension. For the
/// model `MixedPrecisionDemo` on a CPU, this is `mixed_precision_demo_cpu`.
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

/// Trains a model under several precisions and compares the results with the recorded results, the
/// golden. The golden is an insta snapshot in the folder `tests/goldens` of the calling crate. A
/// second file, the anchor, keeps the values of the first recording, and limits how far later
/// recordings may move away from them. The model comes from a registry (`registry = …`), or is
/// given with its data (`data = …`). After these arguments, setters of
/// [`Target`](crate::golden::Target) may follow as `name = value`:
///
/// ```no_run,standalone_crate
/// use amp_core::{data::DataModule, precision::Precision, prelude::*};
///
/// #[derive(LightningModule)]
/// #[loss(cross_entropy)]
/// #[metric(accuracy, name = acc)]
/// #[optimizer(adamw, lr = 1e-3)]
/// struct Net {
///     #[layer(linear(64, 10))]
///     head: Linear,
/// }
/// # fn data() -> DataModule { unimplemented!() }
///
/// #[test]
/// fn net() {
///     amp_verify::verify!(Net, data = data(), epochs = 3, margin = 0.02,
///                         precisions = [Precision::Bf16Mixed]);
/// }
///
/// # fn registry() -> amp_verify::Registry { unimplemented!() }
/// #[test]
/// fn registered() {
///     amp_verify::verify!(Net, registry = registry());
/// }
/// ```
///
/// # Recording
/// The first run of a test records the golden and its anchor, says so, and passes. Commit the two
/// files. In CI, where the environment variable `CI` is set, a missing golden fails the test before
/// anything is trained. If the environment variable `AMP_ANCHORS` is `write`, a missing golden or
/// anchor is written in CI as well. If the results of a later run differ from the golden, the test
/// prints a table of the differences and fails. `cargo insta review` accepts the new results.
///
/// # Tolerances for other CPUs
/// `cargo amp margins --what goldens` measures how much the results differ between CPUs (the
/// spread), and writes the file `NAME.spread.json` next to the golden. This macro computes the
/// tolerances from this file, or from the [`spread`](crate::golden::Check::spread) of the target's
/// options if it is set. If there is neither, the tolerances are computed from the differences
/// between the golden's seeds.
///
/// # Other tests of the same binary
/// All tests of a binary run on threads of one process, and libtorch has one random generator for
/// all of them. Therefore this macro starts the test binary again, as a process that runs only this
/// test. In the new process it evaluates the expression after `data =` and trains. The new process
/// also runs the code that is before `verify!` in the test.
///
/// If no other test can change the results, the macro trains in the test's own process. This is so
/// under cargo-nextest, and on a CPU with `--test-threads=1`. The macro also trains in the test's
/// process if the name of the thread is not the name of the test: in your own `main`
/// (`harness = false`), and on threads that a test starts.
///
/// # Panics
/// When a golden or its anchor is missing, the spread file cannot be parsed, a training run fails,
/// the model does not log its metric, or a value differs from the golden by more than its
/// tolerance.
#[macro_export]
macro_rules! verify {
    ($model:ty, registry = $registry:expr $(, $setter:ident = $value:expr)* $(,)?) => {
        $crate::verify!(@take $crate::golden::Target::registered(
            $registry, $crate::__private::name_of(::std::stringify!($model)),
        )$(.$setter($value))*)
    };
    ($model:ty, data = $data:expr $(, $setter:ident = $value:expr)* $(,)?) => {
        $crate::verify!(@take
            $crate::golden::Target::without_data(
                $crate::__private::name_of(::std::stringify!($model)),
                |hyperparameters| {
                    let builder = <$model>::builder().hyperparameters(hyperparameters)?;
                    ::std::result::Result::Ok(::std::boxed::Box::new(builder.build()?))
                },
            )$(.$setter($value))*,
            $data)
    };
    (@take $target:expr $(, $data:expr)?) => {{
        let target = $target;
        let site = $crate::golden::Site {
            folder: ::std::concat!(::std::env!("CARGO_MANIFEST_DIR"), "/tests/goldens"),
            file: ::std::file!(),
            is_test: ::std::cfg!(test),
        };
        let taken = match $crate::golden::Turn::of(&target, site) {
            $crate::golden::Turn::Train(training) => {
                // Only a process that trains evaluates the expression for the data.
                ::std::option::Option::Some(training.take(&target$(.data($data))?))
            }
            $crate::golden::Turn::Compare(taken) => ::std::option::Option::Some(*taken),
            $crate::golden::Turn::Pass => ::std::option::Option::None,
        };
        if let ::std::option::Option::Some($crate::golden::Taken { name, text, settings }) = taken {
            settings.bind(|| $crate::__private::insta::assert_snapshot!(name, text));
        }
    }};
}
