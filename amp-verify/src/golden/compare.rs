//! Decides whether the results of a training run agree with its golden (the recorded results). Each
//! kind of value has its own tolerance.

use std::{f64::consts::SQRT_2, fmt};

use amp_core::precision::Precision;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use insta::{comparator::Comparator, internals::SnapshotContents};

use crate::registry::Direction;

use super::{
    Figures, Golden, Spread,
    comparable::{kernels, same_gpu, same_kernels},
    spread::{Samples, tolerance, tolerance_of},
};

/// The accepted difference between the peak memory of a run and the recorded peak memory: 5 % of
/// the latter. Peak memory differs between CPUs, because their kernels use workspaces of different
/// sizes.
pub(super) const MEMORY_SHARE: f64 = 0.05;
/// The smallest tolerance of a loss, or of a metric that is not a fraction, relative to its value.
/// Adding f64 numbers in another order causes differences of this size.
const LOSS_SHARE: f64 = 1e-6;

/// A value of a run that differs from the recorded value by more than its tolerance.
#[derive(Debug, Clone, PartialEq)]
pub struct Moved {
    /// The precision of the run. Empty for a value that is the same under all precisions, for
    /// example the batch size.
    pub precision: String,
    /// The name of the value, for example `loss`.
    pub figure: &'static str,
    /// The recorded value (in the golden).
    pub golden: String,
    /// The value in the new run.
    pub found: String,
    /// The accepted difference between the recorded value and the new value, as text.
    pub allowed: String,
}

impl Moved {
    fn new(precision: &str, figure: &'static str, [golden, found, allowed]: [String; 3]) -> Self {
        Self { precision: precision.to_owned(), figure, golden, found, allowed }
    }
}

/// Options for the comparison of a run with the recorded results.
#[derive(Debug, Clone)]
pub struct Agreement {
    /// The recorded differences between machines, from which the tolerances are computed. If it is
    /// `None`, the tolerances are computed from the differences between seeds (`n` and `s` in the
    /// golden), and are wider than necessary.
    pub spread: Option<Spread>,
    /// Whether to compare peak memory. It is compared only if the run used the same kernels as the
    /// recorded run. Do a warm-up run first, as was done before recording, because the first run of
    /// a process also allocates memory that later runs reuse.
    pub memory: bool,
}

/// The accepted differences between the values of a run and the recorded values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerances {
    /// By how much the metric may differ.
    pub accuracy: f64,
    /// By how much the difference between the metric and 32-true's metric may differ from the
    /// recorded difference. This tolerance is wider than that of the metric, because each of the
    /// two runs may differ between machines.
    pub accuracy_delta: f64,
    /// By how much the validation loss may differ.
    pub loss: f64,
    /// By how much peak memory may differ, in bytes.
    pub peak_memory_bytes: f64,
    /// By how much the number of skipped steps may differ. If this tolerance is n, the final loss
    /// scale may differ by a factor of 2^n.
    pub skips: u64,
}

/// By how much the number of skipped steps may differ between two kernel sets. Their gradients
/// differ only by rounding, so a gradient overflows with only one of them if it is very close to
/// the largest f16 number. Once the loss scale is halved, this gradient is far from overflow with
/// both kernel sets. So the numbers of skipped steps differ by at most one.
const SKIPS_OF_OTHER_KERNELS: u64 = 1;

impl Tolerances {
    /// No tolerance: every value must be equal to the recorded value.
    const NONE: Self =
        Self { accuracy: 0.0, accuracy_delta: 0.0, loss: 0.0, peak_memory_bytes: 0.0, skips: 0 };
}

impl Agreement {
    /// Returns the values of the new run `found` that differ from the recorded values by more than
    /// their tolerances, in the order in which the golden lists them.
    pub fn moved(&self, golden: &Golden, found: &Golden) -> Vec<Moved> {
        let mut moved = Vec::new();
        let head = |g: &Golden| {
            let hyperparameters = serde_json::Value::Object(g.hyperparameters.clone());
            format!(
                "{} on {}, seeds {:?}, {} epochs, batch size {}, {hyperparameters}",
                g.model, g.data, g.seeds, g.epochs, g.batch_size
            )
        };
        exact(&mut moved, "", "case", &head(golden), &head(found));
        let names = |g: &Golden| g.runs.keys().cloned().collect::<Vec<_>>().join(" ");
        exact(&mut moved, "", "precisions", &names(golden), &names(found));
        let kernels = |g: &Golden| g.fingerprint.as_ref().map(kernels);
        let memory = self.memory && kernels(golden) == kernels(found);
        let machines = golden.fingerprint.as_ref().zip(found.fingerprint.as_ref());
        let same_gpu = machines.is_some_and(|(known, own)| same_gpu(known, own));
        let skips = match machines {
            Some((known, own)) if !same_kernels(known, own) => SKIPS_OF_OTHER_KERNELS,
            _ => 0,
        };
        for (precision, figures) in &golden.runs {
            if let Some(found) = found.runs.get(precision) {
                let tolerances = match same_gpu {
                    true => Tolerances::NONE,
                    false => Tolerances { skips, ..self.tolerances(golden, precision, figures) },
                };
                Self::figures(&mut moved, precision, figures, found, tolerances, memory);
            }
        }
        moved
    }

    /// Returns by how much the results of another machine with the same kernels may differ from the
    /// recorded results (the golden). The tolerance of the metric is at most the model's margin, so
    /// every regression that fails `cargo amp gate` also fails the comparison with the golden.
    pub fn tolerances(&self, golden: &Golden, precision: &str, figures: &Figures) -> Tolerances {
        let recorded = self.spread.as_ref().and_then(|spread| spread.samples.get(precision));
        // An accuracy may always differ by one correctly classified example. The factor 1.25 leaves
        // room for the rounding of the division.
        let step = match golden.direction.is_share() {
            true => 1.25 / golden.examples as f64,
            false => LOSS_SHARE * figures.accuracy.unwrap_or(0.0).abs(),
        };
        let share = LOSS_SHARE * figures.loss.unwrap_or(0.0).abs();
        let bytes = MEMORY_SHARE * figures.peak_memory_bytes as f64;
        let (accuracy, loss, peak_memory_bytes) = match recorded {
            Some(Samples { accuracy, loss, peak_memory_bytes }) => {
                (tolerance(accuracy), tolerance(loss), tolerance(peak_memory_bytes))
            }
            None => {
                // Without a spread, the tolerance of a precision is computed from its differences
                // from 32-true with several seeds. 32-true itself has no such differences. It gets
                // the widest tolerance of the other precisions.
                let others = golden.runs.values().filter_map(|run| run.paired);
                let paired: Vec<_> =
                    figures.paired.map_or_else(|| others.collect(), |own| vec![own]);
                let widest = |of: fn(&super::Paired) -> f64| {
                    paired.iter().map(|pair| tolerance_of(pair.n, of(pair))).fold(0.0, f64::max)
                };
                (widest(|pair| pair.s), widest(|pair| pair.loss_s), 0.0)
            }
        };
        let of_metric = |tolerance: f64| tolerance.min(golden.margin).max(step);
        Tolerances {
            accuracy: of_metric(accuracy),
            accuracy_delta: of_metric(accuracy * SQRT_2),
            loss: loss.max(share),
            peak_memory_bytes: peak_memory_bytes.max(bytes),
            skips: 0,
        }
    }

    fn figures(
        moved: &mut Vec<Moved>,
        precision: &str,
        golden: &Figures,
        found: &Figures,
        allowed: Tolerances,
        memory: bool,
    ) {
        scaler(moved, precision, golden, found, allowed.skips);
        let dtypes = |figures: &Figures| {
            format!("{:?} {} {:?}", figures.matmul, figures.loss_dtype, figures.weights)
        };
        exact(moved, precision, "dtypes", &dtypes(golden), &dtypes(found));
        let Tolerances { accuracy, accuracy_delta, loss, peak_memory_bytes, .. } = allowed;
        within(moved, precision, "accuracy", golden.accuracy, found.accuracy, accuracy);
        let (a, b) = (golden.accuracy_delta, found.accuracy_delta);
        // 32-true is not compared with itself.
        if precision != Precision::F32True.name() || a.is_some() || b.is_some() {
            within(moved, precision, "accuracy_delta", a, b, accuracy_delta);
        }
        within(moved, precision, "loss", golden.loss, found.loss, loss);
        if memory {
            let bytes = |figures: &Figures| Some(figures.peak_memory_bytes as f64);
            let (a, b) = (bytes(golden), bytes(found));
            within(moved, precision, "peak_memory_bytes", a, b, peak_memory_bytes);
        }
    }
}

/// Compares the number of skipped steps and the final loss scale of a run with the recorded ones.
fn scaler(moved: &mut Vec<Moved>, precision: &str, golden: &Figures, found: &Figures, skips: u64) {
    let factor = 2_f64.powi(skips as i32);
    let allowed = |other: String| if skips == 0 { "equal".into() } else { other };
    let (before, now) = (golden.skipped_steps, found.skipped_steps);
    if before.abs_diff(now) > skips {
        let texts = [before.to_string(), now.to_string(), allowed(format!("± {skips}"))];
        moved.push(Moved::new(precision, "skipped_steps", texts));
    }
    let agrees = match (golden.final_scale, found.final_scale) {
        (Some(golden), Some(found)) => golden / found <= factor && found / golden <= factor,
        (golden, found) => golden == found,
    };
    if !agrees {
        let scale = |scale: Option<f64>| scale.map_or("none".into(), |scale| scale.to_string());
        let allowed = allowed(format!("within a factor of {factor}"));
        let texts = [scale(golden.final_scale), scale(found.final_scale), allowed];
        moved.push(Moved::new(precision, "final_scale", texts));
    }
}

pub(super) fn exact<T: PartialEq + fmt::Display>(
    moved: &mut Vec<Moved>,
    precision: &str,
    figure: &'static str,
    golden: &T,
    found: &T,
) {
    if golden != found {
        let texts = [golden.to_string(), found.to_string(), "equal".into()];
        moved.push(Moved::new(precision, figure, texts));
    }
}

/// Adds a value to `moved` if it differs from the recorded value by more than the tolerance. A
/// value that is not finite is always added, even if the recorded value is not finite either.
pub(super) fn within(
    moved: &mut Vec<Moved>,
    precision: &str,
    figure: &'static str,
    golden: Option<f64>,
    found: Option<f64>,
    allowed: f64,
) {
    let agrees = match (golden, found) {
        (Some(golden), Some(found)) => (golden - found).abs() <= allowed,
        _ => false,
    };
    if !agrees {
        let text = |value: Option<f64>| {
            value.map_or("not finite".into(), |v| match allowed {
                // Shows all digits, because the two values may differ only in the last digit.
                0.0 => v.to_string(),
                _ => format!("{v:.6}"),
            })
        };
        let limit = match allowed {
            0.0 => "equal, on this model of GPU".into(),
            _ => format!("± {allowed:.6}"),
        };
        moved.push(Moved::new(precision, figure, [text(golden), text(found), limit]));
    }
}

impl Comparator for Agreement {
    fn matches(&self, reference: &insta::Snapshot, test: &insta::Snapshot) -> bool {
        let parse = |snapshot: &insta::Snapshot| match snapshot.contents() {
            SnapshotContents::Text(text) => super::parse(&text.to_string()).ok(),
            SnapshotContents::Binary(_) => None,
        };
        let (Some(golden), Some(found)) = (parse(reference), parse(test)) else { return false };
        let moved = self.moved(&golden, &found);
        if !moved.is_empty() {
            eprintln!("{}", table(&moved));
        }
        moved.is_empty()
    }

    /// Returns whether the texts of two snapshots are equal. insta calls this if
    /// `INSTA_REQUIRE_FULL_MATCH` is set.
    fn matches_fully(&self, reference: &insta::Snapshot, test: &insta::Snapshot) -> bool {
        reference.contents() == test.contents()
    }

    fn dyn_clone(&self) -> Box<dyn Comparator> {
        Box::new(self.clone())
    }
}

/// Formats a table of the values that differ from the recorded ones by more than their tolerance.
pub fn table(moved: &[Moved]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(["precision", "figure", "golden", "found", "allowed"]);
    for Moved { precision, figure, golden, found, allowed } in moved {
        table.add_row([precision, *figure, golden, found, allowed]);
    }
    table
}

/// Compares recorded results that contain NaN with a good run, and with a run that has NaN in the
/// same place. Returns whether both comparisons fail, as they must. The gate's self-test calls this
/// function.
pub fn refuses_not_a_number() -> bool {
    let samples = |value: f64| vec![value; 3];
    let name = Precision::F16Mixed.name().to_owned();
    let spread = Spread {
        recorded_by: String::new(),
        examples: 100,
        samples: [(
            name.clone(),
            Samples { accuracy: samples(0.9), loss: samples(0.3), peak_memory_bytes: samples(1e6) },
        )]
        .into(),
    };
    let sound = Golden {
        model: String::new(),
        data: String::new(),
        seeds: vec![0],
        fingerprint: None,
        margin: 0.01,
        direction: Direction::HigherIsBetter,
        memory_share: MEMORY_SHARE,
        examples: 100,
        epochs: 1,
        batch_size: 1,
        hyperparameters: Default::default(),
        runs: [(
            name.clone(),
            Figures {
                accuracy: Some(0.9),
                accuracy_delta: Some(0.0),
                loss: Some(0.3),
                skipped_steps: 0,
                final_scale: None,
                peak_memory_bytes: 1_000_000,
                matmul: Default::default(),
                loss_dtype: String::new(),
                weights: Default::default(),
                paired: None,
            },
        )]
        .into(),
    };
    let agreement = Agreement { spread: Some(spread), memory: true };
    let broken = |value: Option<f64>| {
        let mut golden = sound.clone();
        if let Some(figures) = golden.runs.get_mut(&name) {
            figures.loss = value;
        }
        golden
    };
    agreement.moved(&sound, &sound).is_empty()
        && [None, Some(f64::NAN)].into_iter().all(|value| {
            let golden = broken(value);
            let refused = |found: &Golden| !agreement.moved(&golden, found).is_empty();
            refused(&sound) && refused(&golden)
        })
}
