//! The code that all optimizers share: parameter groups, the state of each parameter, and the
//! choice of the dtype in which a step computes.

use std::rc::Rc;

use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use super::{
    Algorithm, Capabilities, Moments, OnDevice, Optimizer, Rates, Slot, StepTensors, Storage,
    WeightUpdate,
    chunks::{Piece, Scalars, parts, wholes},
    kernel_batch::{Batch, Key, each_of},
    notes, saved,
    state::{Code, Codes, Kept, ParameterState, SlotShape, drop_unused, laid_out},
    weight_update::{wide, write, write_stochastically},
    working_tensors::{Working, common_device, is_taken, moments, working},
};
use crate::{
    Error, Result,
    ffi::{self, Grads},
    nn::Parameter,
    state::State,
};

/// An optimizer with its parameters and their state.
pub(super) struct Engine<A> {
    /// The options of each parameter group.
    options: Vec<A>,
    /// The lists of slots (state tensors) that parameters may have. Equal lists are stored once.
    layouts: Vec<Vec<Slot>>,
    /// The learning rate and momentum of each group on the device, if steps can be captured in a
    /// CUDA graph; otherwise `None`.
    rates: Vec<Option<RatesOnDevice>>,
    parameters: Rc<[Parameter]>,
    /// The device of the parameters; `None` if they are on several devices.
    device: Option<Device>,
    /// The group and the state tensors of each parameter.
    kept: Vec<Kept>,
    storage: Storage,
    /// Whether a skipped step leaves the running averages bit for bit unchanged. False if they are
    /// stored in fewer bits than f32 and converted for a step, because even a skipped step then
    /// rounds them again.
    steady: bool,
}

/// The learning rate and momentum on the device, where a captured step reads them.
struct RatesOnDevice {
    tensor: Tensor,
    written: Option<Rates>,
}

impl<A: Algorithm> Engine<A> {
    /// Creates the optimizer. `group_of` contains the group of each parameter, as an index into
    /// `options`.
    pub(super) fn new(
        options: Vec<A>,
        parameters: Vec<Parameter>,
        group_of: &[usize],
        storage: Storage,
    ) -> Result<Self> {
        options.iter().try_for_each(A::check)?;
        let (layouts, kept) = laid_out(&options, &parameters, group_of)?;
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
        let device = common_device(&parameters);
        let steady = parameters.iter().zip(group_of).all(|(parameter, group)| {
            let kind = parameter.tensor.kind();
            moments(kind, storage) == Moments::Full
                || is_taken(&options[*group], &parameter.tensor, storage)
        });
        let rates = options.iter().map(|options| match device {
            Some(device) if options.capabilities(device).captures => {
                let tensor = Tensor::f_zeros([2], (Kind::Double, device))?;
                Ok(Some(RatesOnDevice { tensor, written: None }))
            }
            _ => Ok(None),
        });
        let rates = rates.collect::<Result<_>>()?;
        let parameters = parameters.into();
        let mut engine =
            Self { options, layouts, rates, parameters, device, kept, storage, steady };
        engine.extend_state()?;
        Ok(engine)
    }

    /// Returns the state of the parameter with the index `place`, which has a gradient. Returns an
    /// error if there is no state.
    fn state_of(&self, place: usize) -> Result<&ParameterState> {
        self.kept[place].state.as_ref().ok_or_else(|| {
            Error::config(format!(
                "optimizer: `{}` has a gradient but no state: call `extend_state` after unfreezing it",
                self.parameters[place].name
            ))
        })
    }

    /// Divides the parameters that have gradients into batches. One kernel call can update all
    /// parameters of a batch.
    fn batches<'g>(&self, grads: &'g Grads) -> Result<Vec<Batch<'g>>> {
        let mut batches: Vec<Batch<'_>> = Vec::new();
        for (place, grad) in grads.with_places() {
            let key = Key {
                group: self.kept[place].group,
                layout: self.kept[place].layout,
                kind: self.parameters[place].tensor.kind(),
                grad_kind: grad.kind(),
                first: !self.state_of(place)?.started,
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
        Ok(batches)
    }

    fn step_batch(&self, batch: &Batch<'_>, known: OnDevice<'_>) -> Result<()> {
        let Key { group, kind, .. } = batch.key;
        let working = working::<A>(kind, self.storage);
        let like = &self.parameters[batch.places[0]].tensor;
        if is_taken(&self.options[group], like, self.storage) {
            return self.step_whole(batch, known);
        }
        let mut scalars = Scalars::default();
        let parts = if A::ELEMENTWISE { parts } else { wholes };
        parts(&batch.grads)
            .iter()
            .try_for_each(|part| self.step_part(batch, part, working, &mut scalars, known))
    }

    /// Updates parameters and their state in place, without f32 copies.
    fn step_whole(&self, batch: &Batch<'_>, known: OnDevice<'_>) -> Result<()> {
        let states =
            batch.places.iter().map(|at| self.state_of(*at)).collect::<Result<Vec<_>>>()?;
        let params: Vec<&Tensor> =
            batch.places.iter().map(|at| &self.parameters[*at].tensor).collect();
        let Key { group, layout, kind, grad_kind, .. } = batch.key;
        let slots = 0..self.layouts[layout].len();
        let kept: Vec<Vec<&Tensor>> = slots
            .clone()
            .map(|slot| states.iter().map(|state| state.slots[slot].kept()).collect())
            .collect();
        let (mut scales, mut codes) = (Vec::new(), Vec::new());
        for slot in slots {
            let coded = states.iter().map(|state| state.slots[slot].coded());
            let (of_slot, code): (Vec<&Tensor>, Vec<&Code>) = coded.flatten().unzip();
            if let Some(code) = code.first() {
                scales.push(of_slot);
                codes.push(*code);
            }
        }
        let on = |grads| self.step_on(batch, &params, grads, &kept, (&scales, &codes), known);
        // libtorch's kernels need gradients in the dtype of the parameters. This crate's kernels,
        // which are used if the rates are on the device, also accept other dtypes.
        match grad_kind == kind || self.rates[group].is_some() {
            true => on(&batch.grads),
            false => {
                let grads = batch.grads.iter().map(|grad| wide(grad));
                on(&each_of(&grads.collect::<Result<Vec<_>>>()?))
            }
        }
    }

    /// Copies the pieces of `part`, and the state of these pieces, to f32, updates the copies, and
    /// writes the results back.
    fn step_part(
        &self,
        batch: &Batch<'_>,
        part: &[Piece],
        working: Working,
        scalars: &mut Scalars,
        known: OnDevice<'_>,
    ) -> Result<()> {
        let kept = batch.places.iter().map(|at| self.state_of(*at)).collect::<Result<Vec<_>>>()?;
        let each = |read: &dyn Fn(&Piece) -> Result<Tensor>| -> Result<Vec<Tensor>> {
            // A rule that does not compute each element independently needs the shape of the
            // parameter.
            let shaped = |piece: &Piece| match A::ELEMENTWISE {
                true => read(piece),
                false => Ok(read(piece)?.f_view(batch.grads[piece.at].size().as_slice())?),
            };
            part.iter().map(shaped).collect()
        };
        let of_model = |piece: &Piece| piece.of(&self.parameters[batch.places[piece.at]].tensor);
        let grads = each(&|piece| wide(&piece.of(batch.grads[piece.at])?))?;
        let narrow = each(&of_model)?;
        let params = each(&|piece| match &kept[piece.at].master {
            Some(master) => piece.of(master),
            None => Ok(wide(&of_model(piece)?)?),
        })?;
        let mut states = Vec::new();
        for (slot, Slot { shape, .. }) in self.layouts[batch.key.layout].iter().enumerate() {
            states.push(match shape {
                SlotShape::Parameter { .. } => {
                    each(&|piece| kept[piece.at].slots[slot].read(piece.start, piece.count))?
                }
                _ => part
                    .iter()
                    .map(|piece| scalars.of(piece, slot, kept[piece.at].slots[slot].kept()))
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
                kept[piece.at].slots[slot].write(piece.start, values)?;
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
        let Key { group, layout, first, .. } = batch.key;
        let rates = self.rates[group].as_ref().map(|rates| &rates.tensor);
        let slots = &self.layouts[layout];
        let tensors =
            StepTensors { params, grads, slots, states, scales, codes, first, known, rates };
        self.options[group].step(&tensors)
    }
}

impl<A: Algorithm> Optimizer for Engine<A> {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn parameters(&self) -> &Rc<[Parameter]> {
        &self.parameters
    }

    fn step_with(&mut self, known: OnDevice<'_>) -> Result<()> {
        let capabilities = self.capabilities();
        if known.found_inf.is_some() && !capabilities.skips
            || known.factor.is_some() && !capabilities.scales
        {
            return Err(Error::config(format!(
                "{} cannot skip a step or scale gradients on this device",
                A::NAME
            )));
        }
        self.write_rates()?;
        let grads = Grads::of(&self.parameters)?;
        for batch in self.batches(&grads)? {
            self.step_batch(&batch, known)?;
            for at in batch.places {
                self.kept[at].state.iter_mut().for_each(ParameterState::note_update);
            }
        }
        Ok(())
    }

    fn extend_state(&mut self) -> Result<()> {
        let mut codes = Codes::default();
        for (parameter, kept) in self.parameters.iter().zip(&mut self.kept) {
            if kept.state.is_none() && parameter.tensor.requires_grad() {
                let started = !self.options[kept.group].first_step_differs();
                let (slots, storage) = (&self.layouts[kept.layout], self.storage);
                let new = ParameterState::new::<A>(parameter, slots, storage, started, &mut codes)?;
                kept.state = Some(new);
            }
        }
        Ok(())
    }

    fn drop_unused_state(&mut self) {
        drop_unused(&self.parameters, &mut self.kept);
    }

    fn capabilities(&self) -> Capabilities {
        // The host records whether a parameter has had its first step. The host would not learn
        // that the device skipped this step, so a step can skip itself only after the first step.
        let mut states = self.kept.iter().filter_map(|kept| kept.state.as_ref());
        let started = states.all(|state| state.started);
        let (true, Some(device)) = (started && self.steady, self.device) else {
            return Capabilities::default();
        };
        let capabilities = self.options.iter().map(|options| options.capabilities(device));
        capabilities.fold(Capabilities::all(true), Capabilities::and)
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

    fn options(&self, place: usize) -> Option<Map<String, Value>> {
        self.options[self.kept.get(place)?.group].fields()
    }

    fn set_rates(&mut self, rates: &[Rates]) {
        for (options, rates) in self.options.iter_mut().zip(rates) {
            options.set_rates(*rates);
        }
    }

    fn fixed_options(&self) -> String {
        let texts = self.options.iter().map(|options| {
            let (mut options, momentum) = (options.clone(), options.rates().momentum.map(|_| 0.0));
            options.set_rates(Rates { lr: 0.0, momentum });
            format!("{options:?}")
        });
        texts.collect::<Vec<_>>().join("; ")
    }

    fn note(&self) -> Option<String> {
        let kinds = self.parameters.iter().map(|parameter| parameter.tensor.kind());
        notes::of::<A>(kinds, self.layouts.iter().flatten(), self.storage)
    }

    fn state(&self) -> Result<State> {
        let mut state = State::default();
        state.put(saved::NAME, &A::NAME)?;
        for (parameter, Kept { group, layout, state: own }) in
            self.parameters.iter().zip(&self.kept)
        {
            let (name, Some(own)) = (&parameter.name, own) else { continue };
            for (slot, moment) in self.layouts[*layout].iter().zip(&own.slots) {
                for (suffix, tensor) in moment.tensors() {
                    state.put_tensor(format!("{}{suffix}/{name}", slot.name), tensor);
                }
            }
            if let Some(master) = &own.master {
                state.put_tensor(format!("{}/{name}", saved::MASTER), master);
            }
            if self.options[*group].first_step_differs() {
                state.put(format!("{}/{name}", saved::STARTED), &own.started)?;
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
            let Some(own) = &mut kept.state else { continue };
            own.note_loaded(match self.options[kept.group].first_step_differs() {
                true => state.get(&format!("{}/{}", saved::STARTED, parameter.name))?,
                false => true,
            });
        }
        for (name, tensor) in own.tensors() {
            write(tensor, state.tensor(name)?)?;
        }
        self.set_rates(&rates);
        Ok(())
    }
}
