//! What all optimizers share: groups of parameters, their state, and the dtype of a step.

use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use super::{
    Abilities, Moments, OnDevice, Optimizer, Rates, Storage, WeightUpdate,
    algorithm::{Algorithm, Slot, SlotShape, StepTensors},
    moments::{Code, Codes, Moment},
    parts::{Piece, Scalars, parts},
    saved,
    weight_update::{wide, write, write_stochastically},
    working::{Working, is_taken, moments, working, zeros},
};
use crate::{
    Error, Result,
    ffi::{self, Grads},
    nn::Parameter,
    state::State,
};

/// A built optimizer.
pub(super) struct Engine<A> {
    /// By group.
    options: Vec<A>,
    /// By group, as the options wanted them at the start.
    slots: Vec<Vec<Slot>>,
    /// By group, where the steps can be captured.
    rates: Vec<Option<RatesOnDevice>>,
    parameters: Rc<[Parameter]>,
    /// That all of them are on.
    device: Option<Device>,
    /// By parameter.
    kept: Vec<Kept>,
    storage: Storage,
    /// Whether a step that is left out changes none of the averages: those that are read and written
    /// are rounded anew.
    steady: bool,
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
    states: Vec<Moment>,
    master: Option<Tensor>,
    /// Whether the next step follows the rule of all but the first.
    started: bool,
}

impl<A: Algorithm> Engine<A> {
    /// `group_of` gives each parameter's place in `options`.
    pub(super) fn new(
        options: Vec<A>,
        parameters: Vec<Parameter>,
        group_of: &[usize],
        storage: Storage,
    ) -> Result<Self> {
        options.iter().try_for_each(A::check)?;
        let slots: Vec<Vec<Slot>> = options.iter().map(A::slots).collect();
        if let (WeightUpdate::StochasticRounding, Some(half)) = (
            storage.weights,
            parameters.iter().find(|parameter| parameter.tensor.kind() == Kind::Half),
        ) {
            return Err(Error::config(format!(
                "optimizer: stochastic rounding is for bfloat16, but `{}` is float16: \
                 use master weights",
                half.name
            )));
        }
        let mut codes = Codes::default();
        let kept = parameters.iter().zip(group_of).map(|(parameter, &group)| {
            let working = working::<A>(parameter.tensor.kind(), storage);
            let moments = moments(parameter.tensor.kind(), storage);
            let in_parts = working != Working::Itself || moments != Moments::Full;
            if in_parts && !parameter.tensor.is_contiguous() {
                // Its pieces would be copies.
                return Err(Error::config(format!(
                    "optimizer: `{}` is not contiguous, and cannot be stepped in parts",
                    parameter.name
                )));
            }
            let zeros = |slot| zeros(slot, &parameter.tensor, working, moments, &mut codes);
            let states = slots[group].iter().map(zeros);
            let states = states.collect::<Result<_>>()?;
            let master = match working {
                Working::Masters => Some(wide(&parameter.tensor)?),
                _ => None,
            };
            let started = !options[group].first_step_differs();
            Ok(Kept { group, states, master, started })
        });
        let kept = kept.collect::<Result<Vec<Kept>>>()?;
        let device = common_device(&parameters);
        let steady = parameters.iter().zip(&kept).all(|(parameter, kept)| {
            let kind = parameter.tensor.kind();
            moments(kind, storage) == Moments::Full
                || is_taken(&options[kept.group], &parameter.tensor, storage)
        });
        let rates = options.iter().map(|options| match device {
            Some(device) if options.abilities(device).captures => {
                let tensor = Tensor::f_zeros([2], (Kind::Double, device))?;
                Ok(Some(RatesOnDevice { tensor, written: None }))
            }
            _ => Ok(None),
        });
        let rates = rates.collect::<Result<_>>()?;
        let parameters = parameters.into();
        Ok(Self { options, slots, rates, parameters, device, kept, storage, steady })
    }

    /// The parameters that have gradients, in parts that one kernel call takes.
    fn batches<'g>(&self, grads: &'g Grads) -> Vec<Batch<'g>> {
        let mut batches: Vec<Batch<'_>> = Vec::new();
        for (place, grad) in grads.with_places() {
            let (parameter, kept) = (&self.parameters[place], &self.kept[place]);
            let key = Key {
                group: kept.group,
                kind: parameter.tensor.kind(),
                grad_kind: grad.kind(),
                first: !kept.started,
            };
            let at = batches.iter().position(|batch| batch.key == key).unwrap_or_else(|| {
                let (places, of) =
                    (Vec::with_capacity(grads.len()), Vec::with_capacity(grads.len()));
                batches.push(Batch { key, places, grads: of });
                batches.len() - 1
            });
            batches[at].places.push(place);
            batches[at].grads.push(grad);
        }
        batches
    }

    fn step_batch(&self, batch: &Batch<'_>, known: OnDevice<'_>) -> Result<()> {
        let Key { group, kind, .. } = batch.key;
        let working = working::<A>(kind, self.storage);
        let like = &self.parameters[batch.places[0]].tensor;
        if is_taken(&self.options[group], like, self.storage) {
            return self.step_whole(batch, known);
        }
        let mut scalars = Scalars::default();
        parts(&batch.grads)
            .iter()
            .try_for_each(|part| self.step_part(batch, part, working, &mut scalars, known))
    }

    /// Steps parameters on their own state.
    fn step_whole(&self, batch: &Batch<'_>, known: OnDevice<'_>) -> Result<()> {
        let places = || batch.places.iter();
        let params: Vec<&Tensor> = places().map(|at| &self.parameters[*at].tensor).collect();
        let Key { group, kind, grad_kind, .. } = batch.key;
        let slots = 0..self.slots[group].len();
        let states: Vec<Vec<&Tensor>> = slots
            .clone()
            .map(|slot| places().map(|at| self.kept[*at].states[slot].kept()).collect())
            .collect();
        let (mut scales, mut codes) = (Vec::new(), Vec::new());
        for slot in slots {
            let coded = places().map(|at| self.kept[*at].states[slot].coded());
            let (of_slot, code): (Vec<&Tensor>, Vec<&Code>) = coded.flatten().unzip();
            if let Some(code) = code.first() {
                scales.push(of_slot);
                codes.push(*code);
            }
        }
        let on = |grads| self.step_on(batch, &params, grads, &states, (&scales, &codes), known);
        // Only kernels of ours take others than the parameters'.
        match grad_kind == kind || self.rates[group].is_some() {
            true => on(&batch.grads),
            false => {
                let grads = batch.grads.iter().map(|grad| wide(grad));
                on(&each_of(&grads.collect::<Result<Vec<_>>>()?))
            }
        }
    }

    /// Steps f32 copies of pieces of parameters and state, and writes them back.
    fn step_part(
        &self,
        batch: &Batch<'_>,
        part: &[Piece],
        working: Working,
        scalars: &mut Scalars,
        known: OnDevice<'_>,
    ) -> Result<()> {
        let each = |read: &dyn Fn(&Piece, usize) -> Result<Tensor>| -> Result<Vec<Tensor>> {
            part.iter().map(|piece| read(piece, batch.places[piece.at])).collect()
        };
        let grads = each(&|piece, _| wide(&piece.of(batch.grads[piece.at])?))?;
        let narrow = each(&|piece, place| piece.of(&self.parameters[place].tensor))?;
        let params = each(&|piece, place| match &self.kept[place].master {
            Some(master) => piece.of(master),
            None => Ok(wide(&piece.of(&self.parameters[place].tensor)?)?),
        })?;
        let mut states = Vec::new();
        for (slot, Slot { shape, .. }) in self.slots[batch.key.group].iter().enumerate() {
            states.push(match shape {
                SlotShape::Parameter { .. } => each(&|piece, place| {
                    self.kept[place].states[slot].read(piece.start, piece.count)
                })?,
                _ => part
                    .iter()
                    .map(|piece| {
                        let own = self.kept[batch.places[piece.at]].states[slot].kept();
                        scalars.of(piece, slot, own)
                    })
                    .collect::<Result<_>>()?,
            });
        }
        let of_states: Vec<Vec<&Tensor>> = states.iter().map(|state| each_of(state)).collect();
        let (of_params, of_grads) = (each_of(&params), each_of(&grads));
        self.step_on(batch, &of_params, &of_grads, &of_states, (&[], &[]), known)?;
        for (to, from) in narrow.iter().zip(&params) {
            match working {
                Working::Itself => {}
                Working::Copies { stochastic: true } => write_stochastically(to, from)?,
                _ => write(to, from)?,
            }
        }
        for (slot, values) in states.iter().enumerate() {
            for (piece, values) in part.iter().zip(values) {
                self.kept[batch.places[piece.at]].states[slot].write(piece.start, values)?;
            }
        }
        Ok(())
    }

    fn step_on(
        &self,
        batch: &Batch<'_>,
        params: &[&Tensor],
        grads: &[&Tensor],
        states: &[Vec<&Tensor>],
        (scales, codes): (&[Vec<&Tensor>], &[&Code]),
        known: OnDevice<'_>,
    ) -> Result<()> {
        let Key { group, first, .. } = batch.key;
        let rates = self.rates[group].as_ref().map(|rates| &rates.tensor);
        let tensors = StepTensors { params, grads, states, scales, codes, first, known, rates };
        self.options[group].step(&tensors)
    }
}

/// What the parameters of one kernel call have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    group: usize,
    kind: Kind,
    grad_kind: Kind,
    /// Whether it is the first step.
    first: bool,
}

/// What one kernel call takes.
struct Batch<'g> {
    key: Key,
    /// Places in the optimizer's list.
    places: Vec<usize>,
    grads: Vec<&'g Tensor>,
}

fn each_of(tensors: &[Tensor]) -> Vec<&Tensor> {
    tensors.iter().collect()
}

/// The device that all parameters are on.
fn common_device(parameters: &[Parameter]) -> Option<Device> {
    let mut devices = parameters.iter().map(|parameter| parameter.tensor.device());
    let first = devices.next()?;
    devices.all(|device| device == first).then_some(first)
}

impl<A: Algorithm> Optimizer for Engine<A> {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn parameters(&self) -> &Rc<[Parameter]> {
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
        let grads = Grads::of(&self.parameters)?;
        for batch in self.batches(&grads) {
            self.step_batch(&batch, known)?;
            for at in batch.places {
                self.kept[at].started = true;
            }
        }
        Ok(())
    }

    fn abilities(&self) -> Abilities {
        // Whether the first step was taken is known on the host alone.
        let started = self.kept.iter().all(|kept| kept.started);
        let (true, Some(device)) = (started && self.steady, self.device) else {
            return Abilities::default();
        };
        let abilities = self.options.iter().map(|options| options.abilities(device));
        abilities.fold(Abilities::all(true), Abilities::and)
    }

    fn write_rates(&mut self) -> Result<()> {
        for (options, rates) in self.options.iter().zip(&mut self.rates) {
            let Some(rates) = rates.as_mut().filter(|r| r.written != Some(options.rates())) else {
                continue;
            };
            let Rates { lr, momentum } = options.rates();
            ffi::write_rates(&rates.tensor, lr, momentum.unwrap_or_default())?;
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
            A::widens(*kind).is_some()
                && working::<A>(*kind, self.storage) == Working::Copies { stochastic: false }
        });
        Some(format!("{} steps in float32: {}", A::NAME, A::widens(widened.next()?)?))
    }

    fn state(&self) -> Result<State> {
        let mut state = State::default();
        state.put(saved::NAME, &A::NAME)?;
        for (parameter, kept) in self.parameters.iter().zip(&self.kept) {
            let name = &parameter.name;
            for (slot, moment) in self.slots[kept.group].iter().zip(&kept.states) {
                for (suffix, tensor) in moment.tensors() {
                    state.put_tensor(format!("{}{suffix}/{name}", slot.name), tensor);
                }
            }
            if let Some(master) = &kept.master {
                state.put_tensor(format!("{}/{name}", saved::MASTER), master);
            }
            if self.options[kept.group].first_step_differs() {
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
        for (parameter, kept) in self.parameters.iter().zip(&mut self.kept) {
            if self.options[kept.group].first_step_differs() {
                kept.started = state.get(&format!("{}/{}", saved::STARTED, parameter.name))?;
            }
        }
        for (name, tensor) in own.tensors() {
            write(tensor, state.tensor(name)?)?;
        }
        self.set_rates(&rates);
        Ok(())
    }
}
