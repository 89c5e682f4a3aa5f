//! The update rules of optimizers in float64, according to their papers and torch's documentation.

use std::collections::BTreeMap;

use amp_core::{
    Result,
    tch::{Tensor, no_grad},
};
use serde_json::{Map, Value};

/// The optimizer state of one parameter. The keys are the names of the state's tensors in torch.
pub(super) type Slots = BTreeMap<&'static str, Tensor>;

/// The optimizers for which this module has an update rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rule {
    Adam { decoupled: bool },
    Sgd,
    RmsProp,
    Lion,
}

/// The options of an optimizer. The keys are the names of the fields of the optimizer's struct.
struct Options<'a>(&'a Map<String, Value>);

impl Options<'_> {
    fn number(&self, name: &str) -> f64 {
        self.0.get(name).and_then(Value::as_f64).unwrap_or_default()
    }

    fn holds(&self, name: &str) -> bool {
        self.0.get(name).and_then(Value::as_bool).unwrap_or_default()
    }

    fn betas(&self) -> (f64, f64) {
        let beta = |at: usize| self.0.get("betas").and_then(|betas| betas[at].as_f64());
        (beta(0).unwrap_or_default(), beta(1).unwrap_or_default())
    }
}

impl Rule {
    /// Returns the update rule for the optimizer with this name. Returns `None` if this module has
    /// no rule for the optimizer.
    pub(super) fn of(optimizer: &str) -> Option<Self> {
        match optimizer {
            "Adam" => Some(Self::Adam { decoupled: false }),
            "AdamW" => Some(Self::Adam { decoupled: true }),
            "SGD" => Some(Self::Sgd),
            "RMSprop" => Some(Self::RmsProp),
            "Lion" => Some(Self::Lion),
            _ => None,
        }
    }

    /// Updates a parameter and its optimizer state in place. `step` is the number of this step,
    /// counted from 1.
    pub(super) fn step(
        self,
        options: &Map<String, Value>,
        step: u64,
        parameter: &Tensor,
        gradient: &Tensor,
        slots: &mut Slots,
    ) -> Result<()> {
        no_grad(|| self.moved(&Options(options), step, parameter, gradient, slots))
    }

    fn moved(
        self,
        options: &Options<'_>,
        step: u64,
        parameter: &Tensor,
        gradient: &Tensor,
        slots: &mut Slots,
    ) -> Result<()> {
        let mut p = parameter.shallow_clone();
        let (lr, decay) = (options.number("lr"), options.number("weight_decay"));
        // L2 regularization: adds the parameter times the weight decay to the gradient.
        let pulled = || -> Result<Tensor> { Ok(gradient.f_add(&p.f_mul_scalar(decay)?)?) };
        match self {
            Self::Adam { decoupled } => {
                let (beta1, beta2) = options.betas();
                let g = if decoupled { gradient.shallow_clone() } else { pulled()? };
                let mean = mix(slots, "exp_avg", beta1, &g)?;
                let square = mix(slots, "exp_avg_sq", beta2, &g.f_square()?)?;
                let unbiased = |value: Tensor, beta: f64| {
                    value.f_div_scalar(1.0 - beta.powi(i32::try_from(step).unwrap_or(i32::MAX)))
                };
                let root = unbiased(square, beta2)?.f_sqrt()?;
                let update =
                    unbiased(mean, beta1)?.f_div(&root.f_add_scalar(options.number("eps"))?)?;
                if decoupled {
                    let _ = p.f_mul_scalar_(1.0 - lr * decay)?;
                }
                let _ = p.f_sub_(&update.f_mul_scalar(lr)?)?;
            }
            Self::Sgd => {
                let (g, momentum) = (pulled()?, options.number("momentum"));
                let update = if momentum == 0.0 {
                    g
                } else {
                    let buffer = match slots.get("momentum_buffer") {
                        // The momentum buffer starts with the first gradient itself, without
                        // dampening.
                        None => g.f_mul_scalar(1.0)?,
                        Some(old) => {
                            let new = g.f_mul_scalar(1.0 - options.number("dampening"))?;
                            old.f_mul_scalar(momentum)?.f_add(&new)?
                        }
                    };
                    slots.insert("momentum_buffer", buffer.shallow_clone());
                    match options.holds("nesterov") {
                        true => g.f_add(&buffer.f_mul_scalar(momentum)?)?,
                        false => buffer,
                    }
                };
                let _ = p.f_sub_(&update.f_mul_scalar(lr)?)?;
            }
            Self::RmsProp => {
                let (g, alpha) = (pulled()?, options.number("alpha"));
                let mut square = mix(slots, "square_avg", alpha, &g.f_square()?)?;
                if options.holds("centered") {
                    let mean = mix(slots, "grad_avg", alpha, &g)?;
                    square = square.f_sub(&mean.f_square()?)?;
                }
                let root = square.f_sqrt()?.f_add_scalar(options.number("eps"))?;
                let mut update = g.f_div(&root)?;
                let momentum = options.number("momentum");
                if momentum > 0.0 {
                    if let Some(old) = slots.get("momentum_buffer") {
                        update = update.f_add(&old.f_mul_scalar(momentum)?)?;
                    }
                    slots.insert("momentum_buffer", update.shallow_clone());
                }
                let _ = p.f_sub_(&update.f_mul_scalar(lr)?)?;
            }
            Self::Lion => {
                let (beta1, beta2) = options.betas();
                let old = slots
                    .get("exp_avg")
                    .map_or_else(|| gradient.f_zeros_like(), |old| Ok(old.shallow_clone()))?;
                let mixed = old.f_mul_scalar(beta1)?.f_add(&gradient.f_mul_scalar(1.0 - beta1)?)?;
                let _ = p.f_mul_scalar_(1.0 - lr * decay)?;
                let _ = p.f_sub_(&mixed.f_sign()?.f_mul_scalar(lr)?)?;
                let _ = mix(slots, "exp_avg", beta2, gradient)?;
            }
        }
        Ok(())
    }
}

/// Updates the running average `name` with the value `new`, and returns the average. The average
/// starts at zero.
fn mix(slots: &mut Slots, name: &'static str, decay: f64, new: &Tensor) -> Result<Tensor> {
    let new = new.f_mul_scalar(1.0 - decay)?;
    let average = match slots.get(name) {
        None => new,
        Some(old) => old.f_mul_scalar(decay)?.f_add(&new)?,
    };
    slots.insert(name, average.shallow_clone());
    Ok(average)
}

#[cfg(test)]
mod tests {
    use amp_core::{
        nn::Parameter,
        optim::{Adam, AdamW, BuildOptimizer, Lion, RmsProp, Sgd},
        tch::{Device, Kind},
    };
    use rstest::rstest;

    use super::*;

    fn wave(phase: f64, speed: f64) -> Tensor {
        let places = Tensor::arange(12, (Kind::Double, Device::Cpu));
        ((places * speed + phase).sin() * 0.3).view([3, 4])
    }

    /// Checks that each rule in float64 gives the same weights and state as the optimizer of
    /// amp-core. Other tests check that amp-core's optimizers give the same bits as torch's.
    #[rstest]
    #[case::adamw(&AdamW { weight_decay: 0.3, ..AdamW::default() })]
    #[case::adamw_betas(&AdamW { betas: (0.7, 0.95), eps: 1e-3, fused: false, ..AdamW::default() })]
    #[case::adam(&Adam { weight_decay: 0.2, ..Adam::default() })]
    #[case::sgd(&Sgd { lr: 0.1, weight_decay: 0.1, ..Sgd::default() })]
    #[case::momentum(&Sgd { lr: 0.1, momentum: 0.9, dampening: 0.3, ..Sgd::default() })]
    #[case::nesterov(&Sgd { lr: 0.1, momentum: 0.9, nesterov: true, ..Sgd::default() })]
    #[case::rmsprop(&RmsProp { weight_decay: 0.1, ..RmsProp::default() })]
    #[case::rmsprop_centered(&RmsProp { momentum: 0.8, centered: true, ..RmsProp::default() })]
    #[case::lion(&Lion { weight_decay: 0.5, ..Lion::default() })]
    fn a_rule_is_the_optimizers_own(#[case] options: &dyn BuildOptimizer) -> Result<()> {
        let tensor = wave(0.3, 1.0).set_requires_grad(true);
        let own = tensor.detach().copy();
        let parameter = Parameter { name: "w".into(), tensor: tensor.shallow_clone() };
        let mut optimizer = options.build(vec![parameter])?;
        let rule = Rule::of(optimizer.name()).expect("it has a rule");
        let mut slots = Slots::new();
        for step in 1..=20_u32 {
            let gradient = wave(f64::from(step), 1.7);
            optimizer.zero_grad()?;
            (&tensor * &gradient).sum(Kind::Double).backward();
            optimizer.step()?;
            let options = optimizer.options(0).expect("it says its options");
            rule.step(&options, u64::from(step), &own, &gradient, &mut slots)?;
        }
        let off = (tensor.detach() - &own).abs().max().double_value(&[]);
        assert!(off < 1e-13, "{off:e}");
        let state = optimizer.state()?;
        for (slot, kept) in &slots {
            let off = (state.tensor(&format!("{slot}/w"))? - kept).abs().max().double_value(&[]);
            assert!(off < 1e-13, "{slot}: {off:e}");
        }
        Ok(())
    }
}
