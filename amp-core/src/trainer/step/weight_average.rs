//! Averages the weights over the steps or epochs of a run.

use std::cell::RefCell;

use tch::{Kind, Tensor};

use crate::{
    LightningModule, Result,
    memory::{copy_of, tensor_bytes},
    precision::is_floating,
    state::State,
    trainer::config::Averaging,
    weights,
};

/// The parameters and buffers of a model, and their averages.
pub(in crate::trainer) struct Average {
    averaging: Averaging,
    tensors: Vec<Averaged>,
    /// The number of updates of the average so far.
    updates: u64,
}

/// A parameter or buffer, and its average.
struct Averaged {
    name: String,
    live: Tensor,
    /// The average. It is f32 if the tensor has 16 bits, because most changes of an average are
    /// smaller than the spacing of 16-bit numbers and would be lost.
    average: Tensor,
    /// The unaveraged value of a 16-bit tensor, while the tensor itself contains the rounded
    /// average. `None` while the tensor contains the unaveraged value.
    aside: RefCell<Option<Tensor>>,
}

/// Returns the dtype of the average of a tensor.
fn average_kind(live: &Tensor) -> Kind {
    match live.kind() {
        Kind::Half | Kind::BFloat16 => Kind::Float,
        kind => kind,
    }
}

/// Returns the number of bytes of the average of a tensor of the model.
pub(in crate::trainer) fn average_bytes(live: &Tensor) -> u64 {
    live.numel() as u64 * average_kind(live).elt_size_in_bytes() as u64
}

impl Averaged {
    /// Creates the average of a tensor of the model. The first average is a copy of the tensor.
    fn new((name, live): (String, Tensor)) -> Result<Self> {
        let average = match average_kind(&live) {
            kind if kind == live.kind() => copy_of(&live)?,
            wider => live.f_detach()?.f_to_kind(wider)?,
        };
        Ok(Self { name, live, average, aside: RefCell::default() })
    }

    /// Returns whether the average is stored in a wider dtype than the tensor.
    fn is_wider(&self) -> bool {
        self.average.kind() != self.live.kind()
    }

    /// Moves the average towards the tensor by the fraction `part` of their difference.
    fn update(&mut self, part: f64) -> Result<()> {
        let Self { live, average, .. } = self;
        match is_floating(live.kind()) {
            true => {
                let live = live.f_detach()?.f_to_kind(average.kind())?;
                let _ = average.f_lerp_(&live, part)?;
            }
            false => average.f_copy_(live)?,
        }
        Ok(())
    }

    /// Exchanges the tensor and its average.
    fn swap(&self) -> Result<()> {
        let (mut live, mut average) = (self.live.detach(), self.average.shallow_clone());
        if !self.is_wider() {
            let kept = copy_of(&live)?;
            live.f_copy_(&average)?;
            return Ok(average.f_copy_(&kept)?);
        }
        let aside = self.aside.take();
        match aside {
            Some(unaveraged) => live.f_copy_(&unaveraged)?,
            None => {
                self.aside.replace(Some(copy_of(&live)?));
                live.f_copy_(&average)?;
            }
        }
        Ok(())
    }
}

impl Average {
    /// Creates the averages of the tensors of `model`. The first averages are copies of the
    /// tensors. The model must already be on its device.
    pub(super) fn new(model: &dyn LightningModule, averaging: Averaging) -> Result<Self> {
        let tensors = weights::distinct(model).into_iter().map(Averaged::new);
        Ok(Self { averaging, tensors: tensors.collect::<Result<_>>()?, updates: 0 })
    }

    /// Updates the average after an applied step, if the run uses a moving average over steps.
    pub(super) fn follow_step(&mut self) -> Result<()> {
        match self.averaging {
            Averaging::Ema { decay } => {
                self.update(if self.updates == 0 { 1.0 } else { 1.0 - decay })
            }
            Averaging::Swa { .. } => Ok(()),
        }
    }

    /// Returns whether the average is updated at the end of this epoch.
    pub(super) fn follows_epoch(&self, epoch: i64) -> bool {
        matches!(self.averaging, Averaging::Swa { start_epoch } if epoch >= start_epoch)
    }

    /// Updates the mean over epochs with the weights at the end of an epoch.
    pub(super) fn follow_epoch(&mut self) -> Result<()> {
        self.update(1.0 / (self.updates + 1) as f64)
    }

    /// Moves the average towards the weights by the fraction `part` of their difference.
    fn update(&mut self, part: f64) -> Result<()> {
        self.updates += 1;
        tch::no_grad(|| self.tensors.iter_mut().try_for_each(|tensor| tensor.update(part)))
    }

    /// Exchanges the weights and their averages. Does nothing before the first update of the
    /// average.
    pub(super) fn swap(&self) -> Result<()> {
        if self.updates == 0 {
            return Ok(());
        }
        tch::no_grad(|| self.tensors.iter().try_for_each(Averaged::swap))
    }

    /// Returns the number of bytes of the averages.
    pub(super) fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor_bytes(&tensor.average)).sum()
    }

    /// Returns the averages and the number of their updates, for a copy of the run's state. The
    /// model must have the unaveraged weights.
    pub(super) fn averages(&self) -> Result<State> {
        let mut state = State::default();
        state.put("updates", &self.updates)?;
        for Averaged { name, average, .. } in &self.tensors {
            state.put_tensor(format!("average/{name}"), average);
        }
        Ok(state)
    }

    /// Restores what [`averages`](Self::averages) returned.
    pub(super) fn load_averages(&mut self, state: &State) -> Result<()> {
        self.updates = state.get("updates")?;
        for Averaged { name, average, .. } in &mut self.tensors {
            let kept = state.tensor_like(&format!("average/{name}"), average)?;
            tch::no_grad(|| average.f_copy_(kept))?;
        }
        Ok(())
    }

    /// Returns the state for a checkpoint. A checkpoint stores the averages as the model's weights.
    /// This state contains the unaveraged weights and, for 16-bit weights, the f32 averages. The
    /// caller must first have [exchanged](Self::swap) weights and averages.
    pub(in crate::trainer) fn state(&self) -> Result<State> {
        let mut state = State::default();
        state.put("updates", &self.updates)?;
        for tensor in &self.tensors {
            let Averaged { name, live, average, aside } = tensor;
            let current = format!("current/{name}");
            match (tensor.is_wider(), &*aside.borrow()) {
                (false, _) => state.put_tensor(current, average),
                (true, aside) => {
                    state.put_tensor(current, aside.as_ref().unwrap_or(live));
                    state.put_tensor(format!("average/{name}"), average);
                }
            }
        }
        Ok(state)
    }

    /// Restores a saved state. The model has already loaded the weights in the file. These are the
    /// averages, if the saved run had updated the averages at least once.
    pub(in crate::trainer) fn load_state(&mut self, state: &State) -> Result<()> {
        self.updates = state.get("updates")?;
        for Averaged { name, live, average, .. } in &mut self.tensors {
            let current = state.tensor_like(&format!("current/{name}"), live)?;
            let wide = format!("average/{name}");
            // Files of older versions do not contain the f32 averages of 16-bit weights.
            let wide = match state.tensor(&wide) {
                Ok(_) => Some(state.tensor_like(&wide, average)?),
                Err(_) => None,
            };
            let mut live = live.detach();
            tch::no_grad(|| -> Result<()> {
                match self.updates {
                    0 => average.f_copy_(wide.unwrap_or(current))?,
                    _ => {
                        average.f_copy_(wide.unwrap_or(&live))?;
                        live.f_copy_(current)?;
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}
