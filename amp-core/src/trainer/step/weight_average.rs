//! Averages the weights over the steps or epochs of a run.

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
    names: Vec<String>,
    live: Vec<Tensor>,
    shadow: Vec<Tensor>,
    /// The number of updates of the average so far.
    updates: u64,
}

impl Average {
    /// Copies the tensors of `model` as the first averages. The model must already be on its
    /// device.
    pub(super) fn new(model: &dyn LightningModule, averaging: Averaging) -> Result<Self> {
        let (names, live): (Vec<_>, Vec<_>) = weights::distinct(model).into_iter().unzip();
        let shadow = live.iter().map(copy_of).collect::<Result<_>>()?;
        Ok(Self { averaging, names, shadow, live, updates: 0 })
    }

    /// Updates the average after an applied step, if it is a moving average over steps.
    pub(super) fn follow_step(&mut self) -> Result<()> {
        match self.averaging {
            Averaging::Ema { decay } => {
                self.update(if self.updates == 0 { 1.0 } else { 1.0 - decay })
            }
            Averaging::Swa { .. } => Ok(()),
        }
    }

    /// Returns whether the average changes at the end of an epoch.
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
        tch::no_grad(|| {
            for (shadow, live) in self.shadow.iter_mut().zip(&self.live) {
                match is_floating(live.kind()) {
                    // 16 bits cannot represent small changes, so the average is computed in f32 and
                    // rounded once.
                    true if live.kind() != Kind::Double && live.kind() != Kind::Float => {
                        let wide = shadow.f_to_kind(Kind::Float)?;
                        let moved = wide.f_lerp(&live.f_to_kind(Kind::Float)?, part)?;
                        shadow.f_copy_(&moved)?;
                    }
                    true => _ = shadow.f_lerp_(&live.detach(), part)?,
                    false => shadow.f_copy_(live)?,
                }
            }
            Ok(())
        })
    }

    /// Exchanges the weights and their averages. Does nothing before the first update of the
    /// average.
    pub(super) fn swap(&self) -> Result<()> {
        if self.updates == 0 {
            return Ok(());
        }
        tch::no_grad(|| {
            for (shadow, live) in self.shadow.iter().zip(&self.live) {
                let kept = live.f_detach_copy()?;
                live.detach().f_copy_(shadow)?;
                shadow.shallow_clone().f_copy_(&kept)?;
            }
            Ok(())
        })
    }

    /// Returns the number of bytes of the averages.
    pub(super) fn bytes(&self) -> u64 {
        self.shadow.iter().map(tensor_bytes).sum()
    }

    /// Returns the state for a checkpoint. The file stores the averages as the model's weights, so
    /// this state contains the unaveraged weights. The caller must have [exchanged](Self::swap)
    /// weights and averages before.
    pub(in crate::trainer) fn state(&self) -> Result<State> {
        let mut state = State::default();
        state.put("updates", &self.updates)?;
        for (name, tensor) in self.names.iter().zip(&self.shadow) {
            state.put_tensor(format!("current/{name}"), tensor);
        }
        Ok(state)
    }

    /// Restores a saved state. The model already has the file's weights, which are the averages.
    pub(in crate::trainer) fn load_state(&mut self, state: &State) -> Result<()> {
        self.updates = state.get("updates")?;
        for (name, shadow) in self.names.iter().zip(&self.shadow) {
            let current = state.tensor_like(&format!("current/{name}"), shadow)?;
            tch::no_grad(|| shadow.shallow_clone().f_copy_(current))?;
        }
        // The file has the averages as weights, and the weights as averages, so both are exchanged.
        self.swap()
    }
}
