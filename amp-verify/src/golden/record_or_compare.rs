//! Records and compares goldens in a test.

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

/// A golden in the form that insta expects.
pub struct Taken {
    /// The name of the snapshot.
    pub name: String,
    /// The text of the snapshot.
    pub text: String,
    /// insta's settings: the folder and the comparator.
    pub settings: insta::Settings,
}

impl Target {
    /// Trains under every precision and seed. On CUDA it requests deterministic algorithms and
    /// switches TF32 off, so that machines with the same compute capability run the same kernels.
    /// It does not load batches ahead, so that peak memory does not depend on timing.
    ///
    /// # Errors
    /// When a run fails, or the model or the device does not exist.
    pub fn golden(&self) -> Result<Golden> {
        self.golden_like(|_| None)
    }

    /// Like [`golden`](Self::golden), but runs only the first seed if its figures agree with a
    /// `known` golden. Other seeds are needed only for n, s and power, which the known golden has.
    ///
    /// # Errors
    /// The errors of [`golden`](Self::golden).
    pub fn golden_like(&self, known: impl Fn(&Golden) -> Option<Golden>) -> Result<Golden> {
        // Numeric switches and random generators belong to the whole process, so other threads must
        // wait.
        let _alone = random::seeded(self.first_seed())?;
        let device = self.device()?;
        hardware::set_numerics(false, device.is_cuda())?;
        // Models in tests are too small for two threads. If other processes use the cores, two
        // threads that wait for each other take ten times as long as one.
        let threads = tch::get_num_threads();
        tch::set_num_threads(1);
        let taken = self.over_seeds(device, known);
        tch::set_num_threads(threads);
        if device.is_cuda() {
            hardware::set_numerics(false, false)?;
        }
        taken
    }

    /// The device on which the golden is trained.
    pub(super) fn device(&self) -> Result<Device> {
        let own = env::var("AMP_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
        hardware::parse_device(self.check.device.as_ref().unwrap_or(&own))
    }

    /// The seed whose figures are recorded.
    pub(super) fn first_seed(&self) -> u64 {
        self.check.seeds.first().copied().unwrap_or_default()
    }

    /// The fingerprint of the machine with the settings of a golden.
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

    /// Adds n, s and power of a known golden to the figures of the first seed.
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

    /// Returns the target with the spread that `folder` has for the golden `name`, unless its check
    /// has a spread.
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

    /// Returns the golden of this target and machine in the folder. A golden of an older format
    /// counts as missing; insta then shows both.
    pub(super) fn known(&self, found: &Golden, folder: &Path) -> Option<Golden> {
        let name = self.file_name(found.fingerprint.as_ref());
        let text = fs::read_to_string(folder.join(format!("{name}.snap"))).ok()?;
        parse(&text).ok()
    }

    /// Compares a new golden with the one in `folder`. Writes a missing anchor if `may_write` is
    /// true.
    ///
    /// # Errors
    /// When the folder's golden is from another kind of machine or has no anchor, a figure exceeds
    /// the budget of the anchor, or the spread file is damaged.
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
        // Without a golden, insta fails and keeps the new one for review.
        if snapshot.exists() || path.exists() || may_write {
            let anchor = Anchor::load_or_create(&path, golden, &agreement, may_write)?;
            let exceeded = anchor.exceeded(golden);
            if !exceeded.is_empty() {
                return Err(Error::config(format!(
                    "{name} has drifted beyond its budget:\n{}\nif that is intended, delete {} and \
                     say why in the commit",
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

/// The name of a golden's file; for `MixedPrecisionDemo` on a CPU `mixed_precision_demo_cpu`.
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

/// Trains a model under every precision and compares the figures with its golden. The golden is an
/// insta snapshot in `tests/goldens` of the calling crate, with an anchor next to it. The model
/// comes from a registry, or is given with its data. Setters of [`Target`] may follow:
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
/// The first run of a test records its golden and the anchor, says so, and passes: commit both. In CI,
/// where the variable `CI` is set, a missing golden fails the test before anything is trained.
/// `AMP_ANCHORS=write` in the environment writes a missing golden or anchor in CI as well. If figures
/// differ later, they are printed as a table, and `cargo insta review` accepts them.
///
/// # Tolerance over CPUs
/// `cargo amp margins --what goldens` writes `NAME.spread.json` next to each golden of a CPU: how far its
/// figures differ between CPUs. This macro reads the file by itself, and the tolerances follow from it; a
/// [`Check`](crate::golden::Check) with a spread takes precedence over the file. Without either the
/// tolerances follow from the golden's own seeds.
///
/// # Other tests of the same binary
/// Tests run on threads of one process, and libtorch has one random generator for all of them. The training
/// and the expression after `data =` therefore run in a separate process: the test binary is started again
/// for this test alone, so that code before `verify!` runs there as well. Under cargo-nextest, and if tests
/// run one at a time (`--test-threads=1`), no other test can disturb the training, and it runs in the
/// test's own process. It also does so if the thread does not have the test's name: in your own `main`
/// (`harness = false`) and on threads that a test starts.
///
/// # Panics
/// When a golden or its anchor is missing, its spread is damaged, a run fails, the model does not log its metric, or
/// figures have moved.
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
                // Created here, because only the process that trains creates the data.
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
