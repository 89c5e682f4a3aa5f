//! What all optimizers share: groups of parameters, their state, and the dtype of a step.

use tch::{Device, Kind, Tensor};

use super::{
    Abilities, OnDevice, Optimizer, Rates, WeightUpdate, saved,
    weight_update::{is_half, wide, write, write_stochastically},
};
use crate::{Error, Result, ffi::Kernels, nn::Parameter, state::State};

/// An optimizer's options with its rule for one step. Implemented by this module's optimizers.
pub(super) trait Algorithm: Copy + 'static {
    /// PyTorch's name.
    const NAME: &'static str;

    /// Whether the first step of a parameter follows another rule.
    const FIRST_STEP_DIFFERS: bool = false;

    /// Why a dtype is stepped in f32 with its state in f32, whatever the user chose; `None` where
    /// the kernels can step it as it is.
    fn widens(kind: Kind) -> Option<&'static str>;

    /// Refuses options out of range.
    ///
    /// # Errors
    /// Names the option and its range.
    fn check(&self) -> Result<()>;

    /// What is kept for each parameter, by PyTorch's names.
    fn slots(&self) -> Vec<Slot>;

    /// The current rates.
    fn rates(&self) -> Rates;

    /// Sets the rates.
    fn set_rates(&mut self, rates: Rates);

    /// Steps parameters of one dtype.
    ///
    /// # Errors
    /// When a kernel fails.
    fn step(&self, tensors: &StepTensors<'_>) -> Result<()>;

    /// What [`step`](Self::step) can take on this device.
    fn abilities(&self, device: Device) -> Abilities {
        let _ = device;
        Abilities::default()
    }

    /// Writes the rates to `[2]` f64 on the device, for steps that can be captured.
    ///
    /// # Errors
    /// When the kernel fails.
    fn write_rates(&self, rates: &Tensor) -> Result<()> {
        let _ = rates;
        Ok(())
    }
}

/// The kernels of an algorithm that has both.
pub(super) fn kernels(fused: bool, found_inf: Option<&Tensor>) -> Kernels<'_> {
    if fused { Kernels::Fused(found_inf) } else { Kernels::Foreach }
}

/// One tensor of a parameter's state.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub(super) name: &'static str,
    pub(super) shape: SlotShape,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum SlotShape {
    /// The parameter's, and its dtype unless that is widened.
    Parameter,
    /// One f32, on the parameter's device.
    Scalar,
    /// One f32 on the CPU.
    HostScalar,
}

impl Slot {
    /// State of the parameter's shape.
    pub(super) const fn like_parameter(name: &'static str) -> Self {
        Self { name, shape: SlotShape::Parameter }
    }
}

/// What one step works on: lists of one length.
#[derive(Debug)]
pub(super) struct StepTensors<'a> {
    pub(super) params: &'a [Tensor],
    pub(super) grads: &'a [Tensor],
    /// By slot.
    pub(super) states: &'a [Vec<Tensor>],
    /// Whether these parameters have never been stepped; all of them or none.
    pub(super) first: bool,
    /// What the device alone knows.
    pub(super) known: OnDevice<'a>,
    /// Where a step that can be captured finds its rates.
    pub(super) rates: Option<&'a Tensor>,
}

/// A built optimizer.
pub(super) struct Engine<A> {
    /// By group.
    options: Vec<A>,
    /// By group, as the options wanted them at the start.
    slots: Vec<Vec<Slot>>,
    /// By group, where the steps can be captured.
    rates: Vec<Option<RatesOnDevice>>,
    parameters: Vec<Parameter>,
    /// By parameter.
    kept: Vec<Kept>,
    update: WeightUpdate,
}

/// The rates where a captured step reads them.
struct RatesOnDevice {
    tensor: Tensor,
    written: Option<Rates>,
}

/// What is kept for a parameter.
struct Kept {
    group: usize,
    /// By slot.
    states: Vec<Tensor>,
    master: Option<Tensor>,
    started: bool,
}

/// What one dtype is stepped on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Working {
    Itself,
    /// f32 copies for the time of the step.
    Copies {
        stochastic: bool,
    },
    Masters,
}

fn working<A: Algorithm>(kind: Kind, update: WeightUpdate) -> Working {
    match update {
        WeightUpdate::MasterWeights if is_half(kind) => Working::Masters,
        WeightUpdate::StochasticRounding if is_half(kind) => Working::Copies { stochastic: true },
        _ if A::widens(kind).is_some() => Working::Copies { stochastic: false },
        _ => Working::Itself,
    }
}

impl<A: Algorithm> Engine<A> {
    /// `group_of` gives each parameter's place in `options`.
    pub(super) fn new(
        options: Vec<A>,
        parameters: Vec<Parameter>,
        group_of: &[usize],
        update: WeightUpdate,
    ) -> Result<Self> {
        options.iter().try_for_each(A::check)?;
        let slots: Vec<Vec<Slot>> = options.iter().map(A::slots).collect();
        if let (WeightUpdate::StochasticRounding, Some(half)) =
            (update, parameters.iter().find(|parameter| parameter.tensor.kind() == Kind::Half))
        {
            return Err(Error::config(format!(
                "optimizer: stochastic rounding is for bfloat16, but `{}` is float16: \
                 use master weights",
                half.name
            )));
        }
        let kept = parameters.iter().zip(group_of).map(|(parameter, &group)| {
            let working = working::<A>(parameter.tensor.kind(), update);
            let states = slots[group].iter().map(|slot| zeros(slot, &parameter.tensor, working));
            let states = states.collect::<Result<_>>()?;
            let master = match working {
                Working::Masters => Some(wide(&parameter.tensor)?),
                _ => None,
            };
            Ok(Kept { group, states, master, started: false })
        });
        let kept = kept.collect::<Result<_>>()?;
        let device = common_device(&parameters);
        let rates = options.iter().map(|options| match device {
            Some(device) if options.abilities(device).captures => {
                let tensor = Tensor::f_zeros([2], (Kind::Double, device))?;
                Ok(Some(RatesOnDevice { tensor, written: None }))
            }
            _ => Ok(None),
        });
        let rates = rates.collect::<Result<_>>()?;
        Ok(Self { options, slots, rates, kept, parameters, update })
    }

    /// The parameters that have gradients, in parts that one kernel call takes.
    fn batches(&self) -> Result<Vec<Batch>> {
        let mut batches: Vec<Batch> = Vec::new();
        for (place, (parameter, kept)) in self.parameters.iter().zip(&self.kept).enumerate() {
            let grad = parameter.tensor.f_grad()?;
            if !grad.defined() {
                continue;
            }
            let first = A::FIRST_STEP_DIFFERS && !kept.started;
            let key = (kept.group, parameter.tensor.kind(), first);
            let at = batches.iter().position(|batch| batch.key == key).unwrap_or_else(|| {
                batches.push(Batch { key, places: Vec::new(), grads: Vec::new() });
                batches.len() - 1
            });
            batches[at].places.push(place);
            batches[at].grads.push(grad);
        }
        Ok(batches)
    }

    fn step_batch(&self, batch: &Batch, known: OnDevice<'_>) -> Result<()> {
        let (_, kind, _) = batch.key;
        let working = working::<A>(kind, self.update);
        let tensors = |places: &[usize]| -> Vec<Tensor> {
            places.iter().map(|at| self.parameters[*at].tensor.shallow_clone()).collect()
        };
        if working == Working::Itself {
            let params = tensors(&batch.places);
            return self.step_on(batch, &batch.places, &params, &batch.grads, known);
        }
        for part in parts(&batch.grads) {
            let places = &batch.places[part.clone()];
            let narrow = tensors(places);
            let grads = batch.grads[part].iter().map(wide).collect::<Result<Vec<_>>>()?;
            let masters = places.iter().filter_map(|at| self.kept[*at].master.as_ref());
            let params = match working {
                Working::Masters => masters.map(Tensor::shallow_clone).collect(),
                _ => narrow.iter().map(wide).collect::<Result<Vec<_>>>()?,
            };
            self.step_on(batch, places, &params, &grads, known)?;
            for (to, from) in narrow.iter().zip(&params) {
                match working {
                    Working::Copies { stochastic: true } => write_stochastically(to, from)?,
                    _ => write(to, from)?,
                }
            }
        }
        Ok(())
    }

    fn step_on(
        &self,
        batch: &Batch,
        places: &[usize],
        params: &[Tensor],
        grads: &[Tensor],
        known: OnDevice<'_>,
    ) -> Result<()> {
        let (group, _, first) = batch.key;
        let slot =
            |slot: usize| places.iter().map(move |at| self.kept[*at].states[slot].shallow_clone());
        let slots = 0..self.slots[group].len();
        let states: Vec<Vec<Tensor>> = slots.map(|at| slot(at).collect()).collect();
        let states = &states;
        let rates = self.rates[group].as_ref().map(|rates| &rates.tensor);
        self.options[group].step(&StepTensors { params, grads, states, first, known, rates })
    }
}

/// What one kernel call takes.
struct Batch {
    /// Group, dtype, and whether it is the first step.
    key: (usize, Kind, bool),
    /// Places in the optimizer's list.
    places: Vec<usize>,
    grads: Vec<Tensor>,
}

/// The device that all parameters are on.
fn common_device(parameters: &[Parameter]) -> Option<Device> {
    let mut devices = parameters.iter().map(|parameter| parameter.tensor.device());
    let first = devices.next()?;
    devices.all(|device| device == first).then_some(first)
}

/// Elements of 16-bit parameters that are widened to f32 at once: bounds the memory of the copies.
const WIDENED: usize = 1 << 22;

/// Ranges of `tensors` with at most [`WIDENED`] elements, or of one tensor.
fn parts(tensors: &[Tensor]) -> Vec<std::ops::Range<usize>> {
    let mut parts: Vec<std::ops::Range<usize>> = Vec::new();
    let mut elements = 0;
    for (at, tensor) in tensors.iter().enumerate() {
        elements += tensor.numel();
        match parts.last_mut() {
            Some(part) if elements <= WIDENED => part.end = at + 1,
            _ => {
                elements = tensor.numel();
                parts.push(at..at + 1);
            }
        }
    }
    parts
}

fn zeros(slot: &Slot, parameter: &Tensor, working: Working) -> Result<Tensor> {
    let zeros = |device| Tensor::f_zeros([], (Kind::Float, device));
    Ok(match slot.shape {
        SlotShape::Scalar => zeros(parameter.device())?,
        SlotShape::HostScalar => zeros(Device::Cpu)?,
        SlotShape::Parameter if working == Working::Itself => {
            parameter.f_zeros_like()?.f_detach()?
        }
        SlotShape::Parameter => wide(&parameter.f_zeros_like()?)?,
    })
}

impl<A: Algorithm> Optimizer for Engine<A> {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn step_with(&mut self, known: OnDevice<'_>) -> Result<()> {
        let abilities = self.abilities();
        if known.found_inf.is_some() && !abilities.skips
            || known.factor.is_some() && !abilities.scales
        {
            return Err(Error::config(format!(
                "{} cannot leave a step out, or scale gradients, on the device here",
                A::NAME
            )));
        }
        self.write_rates()?;
        for batch in self.batches()? {
            self.step_batch(&batch, known)?;
            for at in batch.places {
                self.kept[at].started = true;
            }
        }
        Ok(())
    }

    fn abilities(&self) -> Abilities {
        // Whether the first step was taken is known on the host alone.
        let started = !A::FIRST_STEP_DIFFERS || self.kept.iter().all(|kept| kept.started);
        let (true, Some(device)) = (started, common_device(&self.parameters)) else {
            return Abilities::default();
        };
        let all = Abilities { skips: true, scales: true, captures: true };
        self.options.iter().map(|options| options.abilities(device)).fold(all, Abilities::and)
    }

    fn write_rates(&mut self) -> Result<()> {
        for (options, rates) in self.options.iter().zip(&mut self.rates) {
            let Some(rates) = rates.as_mut().filter(|r| r.written != Some(options.rates())) else {
                continue;
            };
            options.write_rates(&rates.tensor)?;
            rates.written = Some(options.rates());
        }
        Ok(())
    }

    fn rates(&self) -> Vec<Rates> {
        self.options.iter().map(A::rates).collect()
    }

    fn set_rates(&mut self, rates: &[Rates]) {
        for (options, rates) in self.options.iter_mut().zip(rates) {
            options.set_rates(*rates);
        }
    }

    fn note(&self) -> Option<String> {
        let kinds = self.parameters.iter().map(|parameter| parameter.tensor.kind());
        let mut widened = kinds.filter(|kind| {
            working::<A>(*kind, self.update) == Working::Copies { stochastic: false }
        });
        Some(format!("{} steps in float32: {}", A::NAME, A::widens(widened.next()?)?))
    }

    fn state(&self) -> Result<State> {
        let mut state = State::default();
        state.put(saved::NAME, &A::NAME)?;
        for (parameter, kept) in self.parameters.iter().zip(&self.kept) {
            let name = &parameter.name;
            for (slot, tensor) in self.slots[kept.group].iter().zip(&kept.states) {
                state.put_tensor(format!("{}/{name}", slot.name), tensor);
            }
            if let Some(master) = &kept.master {
                state.put_tensor(format!("{}/{name}", saved::MASTER), master);
            }
            if A::FIRST_STEP_DIFFERS {
                state.put(format!("{}/{name}", saved::STARTED), &kept.started)?;
            }
        }
        for (group, options) in self.options.iter().enumerate() {
            saved::put_rates(&mut state, &saved::group(group), options.rates())?;
        }
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        let own = self.state()?;
        saved::same_layout(&own, state)?;
        let mut rates = Vec::with_capacity(self.options.len());
        for group in 0..self.options.len() {
            rates.push(saved::get_rates(state, &saved::group(group))?);
        }
        if A::FIRST_STEP_DIFFERS {
            let started = |parameter: &Parameter| {
                state.get::<bool>(&format!("{}/{}", saved::STARTED, parameter.name))
            };
            let started = self.parameters.iter().map(started).collect::<Result<Vec<_>>>()?;
            self.kept.iter_mut().zip(started).for_each(|(kept, started)| kept.started = started);
        }
        for (name, tensor) in own.tensors() {
            write(tensor, state.tensor(name)?)?;
        }
        self.set_rates(&rates);
        Ok(())
    }
}
