//! Compares each layer of a training step under a precision with the same layer of this step under
//! 32-true and 64-true. Also runs each layer separately, to distinguish its own error from the
//! error of its inputs.

use std::ops::Range;

use amp_core::{
    Error, Result,
    hardware::Fingerprint,
    nn::Op,
    precision::{Precision, dtype_name, is_floating},
    tch::{Kind as Dtype, Tensor, no_grad},
};

use super::{
    Flow, Kind, Layer, Own, Report, Subject, error, groups,
    inside::Rounded,
    mark_worst,
    masks::masks_agree,
    parts::{BUDGET, budget, examples, parts},
    pass::{Job, Pass, Plan, Ran, Rerun, exact, module, run},
};
use crate::{
    draws,
    exponents::{CommonWindow, Format, Histogram, Window, WindowOptions, losses},
    reset::ResetModel,
    rounding::{is_narrow, moved, rounding_of},
};

/// The options with which layers are measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// The precision whose rounding errors are measured.
    pub precision: Precision,
    /// The exponent of the loss scale, used only if the precision scales its loss.
    pub log2_scale: i32,
    /// What is required of a safe loss scale.
    pub window: WindowOptions,
    /// At most this many bytes of the layers' recorded tensors are kept at once. On a GPU, half of
    /// the free memory is used if it is larger, unless this number is below the default. If all
    /// layers together need more, they are measured in parts. If one layer needs more, all layers
    /// are measured on fewer examples (the report gives their number).
    pub budget: usize,
}

impl Options {
    /// Returns the options for a measurement under this precision, with a loss scale of 65536.
    pub fn new(precision: Precision) -> Self {
        let window = WindowOptions::default();
        Self { precision, log2_scale: 16, window, budget: BUDGET }
    }
}

/// Measures the errors of every layer of the model.
///
/// # Errors
/// When a step fails, or the model does not run the same layers under every precision.
pub fn measure(subject: &Subject<'_>, options: Options) -> Result<Report> {
    let (report, _) = in_parts(subject, options, None)?;
    Ok(Report { groups: groups(subject, options.precision)?, ..report })
}

/// Measures every layer as [`measure`] does, but does not compare fused layers. Also compares the
/// own error of each 16-bit layer with the error that rounding explains. A layer's own error is its
/// error on inputs computed in 64-true.
///
/// # Errors
/// When a step fails, or the model does not run the same layers under every precision.
pub fn audit(subject: &Subject<'_>, options: Options) -> Result<(Report, Vec<Own>)> {
    let compute = options.precision.compute();
    in_parts(subject, options, is_narrow(compute).then_some(compute))
}

/// Measures the layers in parts, one after another, so that the tensors of a part fit into memory.
fn in_parts(
    subject: &Subject<'_>,
    options: Options,
    rounds_to: Option<Dtype>,
) -> Result<(Report, Vec<Own>)> {
    let budget = budget(subject.device, options.budget)?;
    let mut model = subject.model()?;
    let mut counted = run(subject, &mut model, Plan::counting())?.calls;
    let examples = examples(&counted, subject.batch.len(), budget);
    let narrow;
    let mut subject = subject.clone();
    if examples < subject.batch.len() && subject.batch.is_divisible() {
        narrow = subject.batch.narrow(0, examples)?;
        subject.batch = &narrow;
        counted = run(&subject, &mut model, Plan::counting())?.calls;
    }
    let (mut layers, mut changes, mut all) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = None;
    for part in parts(&counted, budget) {
        let passes = Passes::of(&subject, &mut model, (options, rounds_to), part)?;
        no_grad(|| passes.add(&mut layers, &mut changes))?;
        if rounds_to.is_some() {
            all.extend(no_grad(|| passes.own())?);
        }
        // Frees the tensors of this part before the next part is measured.
        last = Some(passes.ends());
    }
    let ends = last.ok_or_else(|| Error::config("the model's training step calls no layer"))?;
    Ok((ends.report(&subject, model.name(), options, layers, &changes)?, all))
}

/// Returns the paths of the layers, as in [`measure`], and the paths of all modules. Each path
/// occurs once, in the order in which the modules finish their first run.
///
/// # Errors
/// When the training step fails.
pub fn module_paths(subject: &Subject<'_>) -> Result<(Vec<String>, Vec<String>)> {
    let calls = run(subject, &mut subject.model()?, Plan::counting())?.calls;
    let (mut layers, mut modules) = (Vec::new(), Vec::new());
    for call in calls.iter().filter(|call| !call.path.contains('#')) {
        modules.push(call.path.clone());
        if is_layer(&calls, call) {
            layers.push(call.path.clone());
        }
    }
    Ok((layers, modules))
}

/// Returns whether the module itself computes something. A module that only calls other modules is
/// not a layer.
fn is_layer(calls: &[Ran], call: &Ran) -> bool {
    let path = module(&call.path);
    let inside =
        |other: &Ran| other.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
    is_floating(call.output.kind()) && (call.op == Op::Matmul || !calls.iter().any(inside))
}

/// The values that are measured once for the whole step, and not for each layer.
struct Ends {
    log2_scale: i32,
    dropout: bool,
    loss: f64,
    exact_loss: f64,
    draws: Option<String>,
}

/// The recorded training steps under the precision, 32-true and 64-true, with the tensors of the
/// layers of one part of the model.
pub(super) struct Passes {
    /// The indices of the layers that are measured together.
    part: Range<usize>,
    pub(super) reference: Pass,
    baseline: Pass,
    pub(super) actual: Pass,
    /// A second step in 64-true, in which each layer also runs separately: on the 64-true step's
    /// inputs, on these inputs rounded, on the inputs under the precision, and with rounded
    /// parameters on the rounded inputs.
    pub(super) alone: Pass,
    pub(super) log2_scale: i32,
    dropout: bool,
    options: Options,
}

/// The indices of the runs of a single layer in [`Passes::alone`]. Runs from `OF_ROUNDED` on have
/// rounded parameters.
const ON_EXACT: usize = 0;
pub(super) const ON_ROUNDED: usize = 1;
const ON_ACTUAL: usize = 2;
pub(super) const OF_ROUNDED: usize = 3;
/// How many times each layer runs with stochastically rounded parameters. For a normalization layer
/// with 16-bit parameters, these runs also perturb the inputs, which has the same effect as
/// rounding the mean and the standard deviation.
const RUNS_OTHERWISE: u64 = 3;

/// One tensor of a layer, for example its output, under the precision, 32-true and 64-true.
struct Values {
    exact: Tensor,
    baseline: Tensor,
    actual: Tensor,
    /// On the same rounded inputs: the tensor under the precision, and the tensor in 64-true.
    local: Option<[Tensor; 2]>,
    /// In 64-true: the tensor on the inputs under the precision, and on the exact inputs.
    inherited: Option<[Tensor; 2]>,
}

impl Passes {
    /// Runs the steps and keeps the tensors of the layers in `part`. If `rounds_to` is given, each
    /// layer also runs separately with its parameters rounded to this dtype.
    fn of(
        subject: &Subject<'_>,
        model: &mut ResetModel,
        (options, rounds_to): (Options, Option<Dtype>),
        part: Range<usize>,
    ) -> Result<Self> {
        let Options { precision, .. } = options;
        let log2_scale = if precision.scales_loss() { options.log2_scale } else { 0 };
        let scale = 2.0_f64.powi(log2_scale);
        let kinds = [Dtype::Float, precision.storage(), precision.compute()];
        let dropout = masks_agree(subject.device, &kinds)?;
        let keeps = || part.clone();
        let plain =
            |precision| Plan { precision, scale: 1.0, dropout, keeps: keeps(), jobs: Vec::new() };
        let reference = run(subject, model, plain(Precision::F64True))?;
        let baseline = run(subject, model, plain(Precision::F32True))?;
        let clone = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::shallow_clone);
        let on = |input: &Tensor, gradient: &Option<Tensor>| Job {
            input: input.shallow_clone(),
            gradient: clone(gradient),
            weights: None,
        };
        let jobs = reference.calls.iter().enumerate().map(|(at, call)| {
            let is_kept = part.contains(&at);
            is_kept.then(|| on(&call.input, &call.output_gradient)).into_iter().collect()
        });
        let jobs = jobs.collect();
        let actual = run(subject, model, Plan { precision, scale, dropout, keeps: keeps(), jobs })?;
        for other in [&baseline, &actual] {
            let paths =
                |pass: &Pass| pass.calls.iter().map(|call| call.path.clone()).collect::<Vec<_>>();
            if paths(other) != paths(&reference) {
                return Err(Error::config(format!(
                    "`{}` does not run the same layers under every precision, so its layers cannot \
                     be compared",
                    model.name()
                )));
            }
        }
        let jobs = reference.calls.iter().zip(&actual.calls).map(|(exact_call, call)| {
            let Some(Rerun { job: rounded, .. }) = call.reruns.first() else {
                return Ok(Vec::new());
            };
            let mut jobs = vec![
                on(&exact_call.input, &exact_call.output_gradient),
                on(&rounded.input, &rounded.gradient),
                on(&exact(&call.input)?, &call.output_gradient),
            ];
            if let Some(to) = rounds_to.filter(|_| is_narrow(call.output.kind())) {
                let otherwise = (1..=RUNS_OTHERWISE).map(Some);
                for seed in [None].into_iter().chain(otherwise) {
                    let input = match seed {
                        Some(_) if call.rounds_statistics(precision) => {
                            &moved(&rounded.input, rounding_of(to))?
                        }
                        _ => &rounded.input,
                    };
                    let weights = Some(Rounded { to, seed, scale, inner: actual.inner.clone() });
                    jobs.push(Job { weights, ..on(input, &rounded.gradient) });
                }
            }
            Ok(jobs)
        });
        let jobs = jobs.collect::<Result<Vec<_>>>()?;
        let alone = run(subject, model, Plan { jobs, ..plain(Precision::F64True) })?;
        Ok(Self { part, reference, baseline, actual, alone, log2_scale, dropout, options })
    }

    /// Returns the indices of the layers of this part of the model in the list of all modules that
    /// ran.
    pub(super) fn places(&self) -> impl Iterator<Item = usize> {
        let calls = &self.reference.calls;
        self.part.clone().filter(|at| is_layer(calls, &calls[*at]))
    }

    fn ends(self) -> Ends {
        let Self { log2_scale, dropout, .. } = self;
        let of =
            |pass: &Pass| draws::difference(&pass.draws, Precision::F64True, &self.reference.draws);
        let draws = of(&self.actual).or_else(|| of(&self.baseline));
        Ends { log2_scale, dropout, loss: self.actual.loss, exact_loss: self.reference.loss, draws }
    }

    /// Adds the measurements of this part's layers to `layers`. Appends to `changes`, for each
    /// layer, the relative change of the output's magnitude from 64-true to the precision.
    fn add(&self, layers: &mut Vec<Layer>, changes: &mut Vec<f64>) -> Result<()> {
        for at in self.places() {
            let (call, exact) = (&self.actual.calls[at], &self.reference.calls[at]);
            changes.extend(error::relative_change(&call.output, &exact.output)?);
            layers.push(self.layer(at)?);
        }
        Ok(())
    }

    fn layer(&self, at: usize) -> Result<Layer> {
        let call = &self.actual.calls[at];
        let format = Format::of(call.output.kind());
        let mut flows = Vec::with_capacity(3);
        for kind in Kind::ALL {
            let scale = if kind == Kind::Forward { 0 } else { self.log2_scale };
            let values = self.values(at, kind)?;
            flows.push(values.map(|values| values.flow(format, scale)).transpose()?);
        }
        let window = format.and_then(|format| {
            let gradients = flows[1..].iter().flatten();
            let windows =
                gradients.filter_map(|flow| flow.histogram.window(format, self.options.window));
            windows.reduce(Window::intersect)
        });
        let [forward, input_gradient, weight_gradient] = <[_; 3]>::try_from(flows)
            .map_err(|_| Error::config("a layer has three kinds of tensors"))?;
        Ok(Layer {
            path: call.path.clone(),
            dtype: dtype_name(call.output.kind()).into(),
            forward: forward.ok_or_else(|| Error::config("a layer has an output"))?,
            input_gradient,
            weight_gradient,
            window,
            margin_bits: window.map(|window| window.margin_bits(self.log2_scale)),
            worst: Vec::new(),
        })
    }

    fn values(&self, at: usize, kind: Kind) -> Result<Option<Values>> {
        // If the output of this call of the layer has no effect on the loss, the call has no
        // gradients.
        let is_passed_by = self.reference.calls[at].output_gradient.is_none();
        if kind != Kind::Forward && is_passed_by {
            return Ok(None);
        }
        let of = |pass: &Pass| -> Result<Option<Tensor>> {
            let call = &pass.calls[at];
            Ok(match kind {
                Kind::Forward => Some(exact(&call.output)?),
                Kind::InputGradient => call.input_gradient.as_ref().map(Tensor::shallow_clone),
                Kind::WeightGradient => pass.weight_gradient(&call.path)?,
            })
        };
        let alone = |pass: &Pass, job: usize| pass.calls[at].reruns[job].tensor(kind);
        let pair = |a: Option<Tensor>, b: Option<Tensor>| Some([a?, b?]);
        let (Some(exact), Some(baseline), Some(actual)) =
            (of(&self.reference)?, of(&self.baseline)?, of(&self.actual)?)
        else {
            return Ok(None);
        };
        let local = pair(alone(&self.actual, 0), alone(&self.alone, ON_ROUNDED));
        let inherited = pair(alone(&self.alone, ON_ACTUAL), alone(&self.alone, ON_EXACT));
        Ok(Some(Values { exact, baseline, actual, local, inherited }))
    }
}

impl Ends {
    fn report(
        self,
        subject: &Subject<'_>,
        model: &str,
        options: Options,
        mut layers: Vec<Layer>,
        changes: &[f64],
    ) -> Result<Report> {
        mark_worst(&mut layers);
        let windows = layers.iter().filter_map(|layer| Some((layer.path.as_str(), layer.window?)));
        let finite = |value: f64| value.is_finite().then_some(value);
        Ok(Report {
            schema: "amp-layers/2".into(),
            model: model.into(),
            precision: options.precision,
            fingerprint: Fingerprint::of(subject.device)?,
            seed: subject.seed,
            batch_size: subject.batch.len(),
            log2_scale: self.log2_scale,
            dropout: self.dropout,
            loss: finite(self.loss),
            exact_loss: self.exact_loss,
            growth: error::growth(changes),
            window: CommonWindow::of(windows),
            layers,
            groups: Vec::new(),
            draws: self.draws,
        })
    }
}

impl Values {
    fn flow(&self, format: Option<Format>, log2_scale: i32) -> Result<Flow> {
        let mut squares = vec![
            error::mean_square(&self.exact)?,
            error::mean_square_error(&self.actual, &self.exact)?,
            error::mean_square_error(&self.baseline, &self.exact)?,
        ];
        for [found, exact] in self.local.iter().chain(&self.inherited) {
            squares.push(error::mean_square_error(found, exact)?);
        }
        let mut roots = error::roots(&squares)?.into_iter();
        let mut next = |is_there: bool| is_there.then(|| roots.next()).flatten().flatten();
        let (rms, error, baseline_error) = (next(true), next(true), next(true));
        let local_error = next(self.local.is_some());
        let inherited_error = next(self.inherited.is_some());
        let over = |a: f64, b: f64| (b > 0.0).then(|| a / b);
        let both = |a: Option<f64>, b: Option<f64>| Some((a?, b?));
        let histogram = Histogram::of(&self.baseline)?;
        let bias = self.local.as_ref().map(|[found, exact]| error::bias(found, exact));
        Ok(Flow {
            rms,
            error,
            baseline_error,
            ratio: both(error, baseline_error).and_then(|(a, b)| over(a, b)),
            local_error,
            inherited_error,
            local_share: both(local_error, inherited_error)
                .and_then(|(local, inherited)| over(local * local, local.hypot(inherited).powi(2))),
            bias: bias.transpose()?.flatten(),
            predicted: format.map(|format| histogram.predict(format, log2_scale)),
            observed: losses(&self.baseline, &self.actual)?,
            histogram,
        })
    }
}
