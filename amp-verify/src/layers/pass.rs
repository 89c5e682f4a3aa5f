//! Runs one training step and records each layer's tensors. Also runs layers separately, on inputs
//! that do not come from this step.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    rc::Rc,
};

use amp_core::{
    Error, Result, Step,
    hardware::seed_everything,
    log::Log,
    nn::{Call, Context, Draw, Op, Parameter, Probe, parameters, place},
    precision::{Policy, Precision, is_floating},
    probe::Drawn,
    random,
    tch::{Device, Kind, Tensor},
    trainer::first_loss,
};

use super::{
    Subject,
    inside::{Inner, Inside, Rounded, round},
};
use crate::{reset::ResetModel, rounding::is_narrow};

/// One run of a layer within a step. Input and output have the step's dtypes. Gradients are in f64
/// and divided by the loss scale.
pub(super) struct Ran {
    /// The module's path. For the module's second run in the step, `#2` follows the path.
    pub(super) path: String,
    pub(super) op: Op,
    /// Two numbers of elements: of the layer's input and output together, and of the parameters
    /// that belong to the layer itself.
    pub(super) numbers: (usize, usize),
    /// The layer's input and output. They are empty if the tensors of this layer are not kept, to
    /// save memory.
    pub(super) input: Tensor,
    pub(super) output: Tensor,
    pub(super) output_gradient: Option<Tensor>,
    pub(super) input_gradient: Option<Tensor>,
    /// The results of the layer's separate runs, one for each [`Job`].
    pub(super) reruns: Vec<Rerun>,
}

impl Ran {
    /// Returns whether this is a normalization layer with 16-bit parameters. Such a layer also
    /// rounds the mean and the standard deviation of its input. This has the same effect as
    /// perturbing the input by one unit roundoff.
    pub(super) fn rounds_statistics(&self, precision: Precision) -> bool {
        let has_parameters = self.numbers.1 > 0;
        self.op == Op::Other
            && has_parameters
            && is_narrow(precision.storage())
            && is_floating(self.input.kind())
    }
}

/// Describes a separate run of a layer. Before the run, the f64 tensors of the job are rounded to
/// the layer's dtypes.
pub(super) struct Job {
    pub(super) input: Tensor,
    /// The gradient of the unscaled loss with respect to the output, for the backward pass.
    pub(super) gradient: Option<Tensor>,
    /// How to round the layer's parameters. `None` means that they are not rounded.
    pub(super) weights: Option<Rounded>,
}

/// The results of a separate run of a layer, in f64.
pub(super) struct Rerun {
    /// The input and the output's gradient, rounded as the layer received them.
    pub(super) job: Job,
    pub(super) output: Tensor,
    pub(super) input_gradient: Option<Tensor>,
    pub(super) weight_gradient: Option<Tensor>,
}

impl Rerun {
    /// Returns the tensor of this kind. Returns `None` if the layer has no such tensor.
    pub(super) fn tensor(&self, kind: super::Kind) -> Option<Tensor> {
        let tensor = match kind {
            super::Kind::Forward => Some(&self.output),
            super::Kind::InputGradient => self.input_gradient.as_ref(),
            super::Kind::WeightGradient => self.weight_gradient.as_ref(),
        };
        tensor.map(Tensor::shallow_clone)
    }
}

/// What was recorded in one training step.
pub(super) struct Pass {
    /// The records of the layers, in the order in which the layers ended.
    pub(super) calls: Vec<Ran>,
    /// The gradients of the unscaled loss, in f64, by the parameter's name. Contains only the
    /// parameters of layers whose tensors are kept.
    pub(super) gradients: BTreeMap<String, Tensor>,
    pub(super) loss: f64,
    /// The dtypes of intermediate tensors.
    pub(super) inner: Rc<Inner>,
    /// The operators that drew random numbers.
    pub(super) draws: BTreeSet<Drawn>,
}

impl Pass {
    /// Returns the gradients of the layer's own parameters, concatenated to one vector.
    pub(super) fn weight_gradient(&self, path: &str) -> Result<Option<Tensor>> {
        let path = module(path);
        let own = self.gradients.iter().filter(|(name, _)| is_own(path, name));
        joined(own.map(|(_, gradient)| gradient))
    }
}

/// Returns the path of the module, without a suffix such as `#2`.
pub(super) fn module(path: &str) -> &str {
    path.split_once('#').map_or(path, |(module, _)| module)
}

pub(super) fn is_own(path: &str, parameter: &str) -> bool {
    let rest = parameter.strip_prefix(path).and_then(|rest| rest.strip_prefix('.'));
    rest.is_some_and(|rest| !rest.contains('.'))
}

fn joined<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<Option<Tensor>> {
    let flat =
        tensors.map(|tensor| Ok(tensor.f_flatten(0, -1)?)).collect::<Result<Vec<Tensor>>>()?;
    if flat.is_empty() {
        return Ok(None);
    }
    Ok(Some(Tensor::f_cat(&flat, 0)?))
}

/// The options of the training step in which the layers' tensors are recorded.
pub(super) struct Plan {
    pub(super) precision: Precision,
    /// The loss scale of the step.
    pub(super) scale: f64,
    pub(super) dropout: bool,
    /// The indices of the layers whose tensors are kept, in the order in which they end.
    pub(super) keeps: Range<usize>,
    /// For each layer, the jobs that run it separately. The order is that in which the layers end.
    pub(super) jobs: Vec<Vec<Job>>,
}

impl Plan {
    /// Returns options for a step that only lists the layers, and keeps no tensors.
    pub(super) fn counting() -> Self {
        let (keeps, jobs) = (0..0, Vec::new());
        Self { precision: Precision::F32True, scale: 1.0, dropout: false, keeps, jobs }
    }
}

/// Runs the training step and records the tensors of the layers. In all steps and separate runs of
/// one measurement, a layer draws the same random numbers.
pub(super) fn run(subject: &Subject<'_>, model: &mut ResetModel, plan: Plan) -> Result<Pass> {
    let policy = Policy::new(plan.precision, subject.device);
    let _section = random::seeded(subject.seed)?;
    let mut model = subject.prepared(model)?;
    place(model.as_mut(), policy, &subject.overrides)?;
    let batch = subject.batch.place(policy)?;
    let parameters = parameters(model.as_mut());
    let (scale, dropout, keeps) = (plan.scale, plan.dropout, plan.keeps.clone());
    let observer = Rc::new(Observer {
        seed: subject.seed,
        scale,
        keeps: plan.keeps,
        jobs: plan.jobs,
        parameters: parameters.iter().map(clone).collect(),
        calls: RefCell::default(),
        inner: RefCell::default(),
        drawn: Cell::default(),
        draws: RefCell::default(),
        failed: RefCell::default(),
    });
    let mut context = Context::new(policy, true).with_overrides(subject.overrides.clone());
    context = context.without_checkpointing().with_probe(observer.clone());
    if !dropout {
        context = context.without_dropout();
    }
    seed_everything(subject.seed)?;
    let loss = {
        let _autocast = policy.autocast()?;
        let mut log = Log::default();
        first_loss(model.as_mut(), &batch, &mut Step::new(&context, &mut log, 0, 0))?
    };
    if let Some(error) = observer.failed.take() {
        return Err(error);
    }
    let mut calls = observer.calls.take();
    let traced = |tensor: &Tensor| is_floating(tensor.kind()) && tensor.requires_grad();
    let mut wanted: Vec<Tensor> = Vec::new();
    for call in &calls {
        let both = [&call.output, &call.input];
        wanted.extend(both.into_iter().filter(|tensor| traced(tensor)).map(Tensor::shallow_clone));
    }
    let kept = calls.get(keeps.start.min(calls.len())..keeps.end.min(calls.len()));
    let kept: Vec<&str> = kept.unwrap_or_default().iter().map(|call| module(&call.path)).collect();
    let is_kept = |parameter: &Parameter| kept.iter().any(|path| is_own(path, &parameter.name));
    let parameters: Vec<Parameter> = parameters.into_iter().filter(is_kept).collect();
    wanted.extend(parameters.iter().map(|parameter| parameter.tensor.shallow_clone()));
    let share = match subject.batches_per_step {
        1 => loss.shallow_clone(),
        batches => loss.f_mul_scalar(1.0 / batches as f64)?,
    };
    let scaled = match scale {
        1.0 => share,
        // Multiplies by an f32 tensor, as the loss scaler does. So the scaled loss is f32, even if
        // the loss is f16.
        scale => share.f_mul(&Tensor::from(scale as f32).f_to_device(subject.device)?)?,
    };
    let found = match wanted.is_empty() {
        true => Vec::new(),
        false => Tensor::f_run_backward(&[scaled], &wanted, false, false)?,
    };
    let mut found = found.into_iter();
    let mut next = || -> Result<Option<Tensor>> {
        found.next().filter(Tensor::defined).map(|gradient| unscaled(&gradient, scale)).transpose()
    };
    for call in &mut calls {
        if traced(&call.output) {
            call.output_gradient = next()?;
        }
        if traced(&call.input) {
            call.input_gradient = next()?;
        }
        (call.output, call.input) = (call.output.f_detach()?, call.input.f_detach()?);
    }
    let mut gradients = BTreeMap::new();
    for parameter in parameters {
        if let Some(gradient) = next()? {
            gradients.insert(parameter.name.to_string(), gradient);
        }
    }
    let loss = loss.f_to_kind(Kind::Double)?.f_double_value(&[])?;
    let (inner, draws) = (Rc::new(observer.inner.take()), observer.draws.take());
    Ok(Pass { calls, gradients, loss, inner, draws })
}

fn clone(parameter: &Parameter) -> Parameter {
    Parameter { name: parameter.name.clone(), tensor: parameter.tensor.shallow_clone() }
}

fn unscaled(gradient: &Tensor, scale: f64) -> Result<Tensor> {
    Ok(gradient.f_detach()?.f_to_kind(Kind::Double)?.f_mul_scalar(1.0 / scale)?)
}

struct Observer {
    seed: u64,
    scale: f64,
    keeps: Range<usize>,
    jobs: Vec<Vec<Job>>,
    parameters: Vec<Parameter>,
    calls: RefCell<Vec<Ran>>,
    inner: RefCell<Inner>,
    drawn: Cell<u64>,
    draws: RefCell<BTreeSet<Drawn>>,
    failed: RefCell<Option<Error>>,
}

impl Probe for Observer {
    fn ran(&self, call: &Call<'_>) {
        if let Err(error) = self.observe(call) {
            // If recording a layer fails, later layers may fail because of this. Only the first
            // error is kept.
            self.failed.borrow_mut().get_or_insert(error.at(call.path));
        }
    }

    fn inner(&self, path: &str, name: &str, inner: &Tensor) {
        self.inner.borrow_mut().insert((path.to_owned(), name.to_owned()), inner.kind());
    }

    fn draw(&self, draw: &Draw<'_>) {
        self.draws.borrow_mut().insert(draw.into());
    }
}

impl Observer {
    fn observe(&self, call: &Call<'_>) -> Result<()> {
        let at = self.calls.borrow().len();
        let jobs = self.jobs.get(at).map_or(&[][..], Vec::as_slice);
        // The seed of a layer's random numbers depends only on the layer's index.
        self.drawn.set(self.drawn.get() + 1);
        let seed = self.seed.wrapping_add(self.drawn.get());
        let mut reruns = Vec::with_capacity(jobs.len());
        for job in jobs {
            reruns.push(self.rerun(call, job, seed)?);
        }
        seed_everything(seed)?;
        let runs = |ran: &&Ran| module(&ran.path) == call.path;
        let before = self.calls.borrow().iter().filter(runs).count();
        let path = match before {
            0 => call.path.to_owned(),
            n => format!("{}#{}", call.path, n + 1),
        };
        self.calls.borrow_mut().push(Ran {
            path,
            op: call.op,
            numbers: (call.input.numel() + call.output.numel(), self.own_numbers(call.path)),
            input: self.kept(at, call.input)?,
            output: self.kept(at, call.output)?,
            output_gradient: None,
            input_gradient: None,
            reruns,
        });
        Ok(())
    }

    fn own_numbers(&self, path: &str) -> usize {
        let own = self.parameters.iter().filter(|parameter| is_own(path, &parameter.name));
        own.map(|parameter| parameter.tensor.numel()).sum()
    }

    /// Returns the tensor if it is kept, or else an empty tensor of the same dtype.
    fn kept(&self, at: usize, tensor: &Tensor) -> Result<Tensor> {
        match self.keeps.contains(&at) {
            true => Ok(tensor.shallow_clone()),
            false => Ok(Tensor::f_empty([0], (tensor.kind(), Device::Cpu))?),
        }
    }

    fn rerun(&self, call: &Call<'_>, job: &Job, seed: u64) -> Result<Rerun> {
        let floating = is_floating(call.input.kind());
        let input = job.input.f_detach()?.f_to_kind(call.input.kind())?;
        let input = if floating { input.f_set_requires_grad(true)? } else { input };
        let own = self.parameters.iter().filter(|parameter| is_own(call.path, &parameter.name));
        let mut wanted: Vec<Tensor> = own.map(|p| p.tensor.shallow_clone()).collect();
        let kept = match &job.weights {
            Some(rounded) => round(&wanted, rounded)?,
            None => Vec::new(),
        };
        // Sets the seed again, because rounding the parameters draws random numbers as well.
        seed_everything(seed)?;
        let (output, scale) = match &job.weights {
            Some(Rounded { to, scale, inner, .. }) => {
                let inside = Inside::new(call.path, *to, inner);
                ((call.rerun_with)(&input, Rc::new(inside))?, scale * self.scale)
            }
            None => ((call.rerun)(&input)?, self.scale),
        };
        if floating {
            wanted.insert(0, input.shallow_clone());
        }
        let mut rerun = Rerun {
            job: Job { input: exact(&input)?, gradient: None, weights: None },
            output: exact(&output)?,
            input_gradient: None,
            weight_gradient: None,
        };
        if let (Some(gradient), false, true) =
            (&job.gradient, wanted.is_empty(), output.requires_grad())
        {
            let gradient = gradient.f_mul_scalar(scale)?.f_to_kind(output.kind())?;
            // The gradient of Σ y·g with respect to the output y is exactly g, so the backward pass
            // starts from g.
            let sum = output.f_mul(&gradient)?.f_sum(output.kind())?;
            // Keeps the graph, because the graph of the whole step also uses autocast's cached
            // casts.
            let found = Tensor::f_run_backward(&[sum], &wanted, true, false)?;
            let mut found =
                found.iter().map(|gradient| gradient.defined().then(|| unscaled(gradient, scale)));
            if floating {
                rerun.input_gradient = found.next().flatten().transpose()?;
            }
            let weights = found.flatten().collect::<Result<Vec<Tensor>>>()?;
            rerun.weight_gradient = joined(weights.iter())?;
            rerun.job.gradient = Some(unscaled(&gradient, scale)?);
        }
        for (mut data, kept) in kept {
            data.f_copy_(&kept)?;
        }
        Ok(rerun)
    }
}

/// Converts floating-point tensors to f64.
pub(super) fn exact(tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.f_detach()?;
    Ok(if is_floating(tensor.kind()) { tensor.f_to_kind(Kind::Double)? } else { tensor })
}
