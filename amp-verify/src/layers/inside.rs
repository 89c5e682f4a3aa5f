//! Rounds a layer's parameters and intermediate tensors when the layer runs separately, outside the
//! model's forward pass.

use std::{collections::BTreeMap, rc::Rc};

use amp_core::{
    Result,
    hardware::seed_everything,
    nn::{Substitute, with_rounded_gradient},
    tch::{Kind, Tensor},
};

use crate::rounding::{is_narrow, rounded, rounded_stochastically};

/// The dtypes of modules' intermediate tensors in a step, by the module's path and the tensor's
/// name.
pub(super) type Inner = BTreeMap<(String, String), Kind>;

/// How to round a layer's parameters and intermediate tensors to the dtype `to`. If `seed` is
/// given, the parameters are rounded stochastically. Otherwise they are rounded to nearest.
#[derive(Debug, Clone)]
pub(super) struct Rounded {
    pub(super) to: Kind,
    pub(super) seed: Option<u64>,
    /// The loss scale, by which gradients are multiplied while they are rounded.
    pub(super) scale: f64,
    pub(super) inner: Rc<Inner>,
}

/// Rounds the intermediate tensors of one layer as a 16-bit precision does.
pub(super) struct Inside {
    path: String,
    to: Kind,
    /// The dtypes that intermediate tensors have under the precision. If an intermediate tensor is
    /// not listed, because a fused operation computes it under the precision, it is rounded to the
    /// dtype `to`.
    inner: Rc<Inner>,
}

impl Inside {
    /// Creates the rounding for the layer at `path`, which computes in the dtype `to`.
    pub(super) fn new(path: &str, to: Kind, inner: &Rc<Inner>) -> Self {
        Self { path: path.to_owned(), to, inner: Rc::clone(inner) }
    }
}

impl Substitute for Inside {
    fn within(&self, path: &str, name: &str, inner: &Tensor) -> Result<Tensor> {
        let kind = self.inner.get(&(path.to_owned(), name.to_owned())).copied();
        match kind.unwrap_or(self.to) {
            kind if path == self.path && is_narrow(kind) => rounded(inner, kind),
            _ => Ok(inner.shallow_clone()),
        }
    }

    fn next_use(&self, path: &str, inner: &Tensor) -> Result<Tensor> {
        match path == self.path {
            true => with_rounded_gradient(inner, self.to),
            false => Ok(inner.shallow_clone()),
        }
    }
}

/// Rounds the values of parameters in place. The autograd graphs that use the parameters do not
/// change. Returns each parameter's data and a copy of its earlier values, to restore them.
pub(super) fn round(parameters: &[Tensor], how: &Rounded) -> Result<Vec<(Tensor, Tensor)>> {
    if let Some(seed) = how.seed {
        seed_everything(seed)?;
    }
    let each = parameters.iter().map(|parameter| {
        let mut data = parameter.f_data()?;
        let kept = data.f_detach_copy()?;
        data.f_copy_(&match how.seed {
            Some(_) => rounded_stochastically(&kept, how.to)?,
            None => rounded(&kept, how.to)?,
        })?;
        Ok((data, kept))
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use amp_core::{nn::Gru, prelude::*, tch::Kind};
    use rstest::rstest;

    use crate::layers::{Options, Subject, audit};

    #[derive(LightningModule)]
    #[forward(|x| {
        let (states, _) = gru(x, None, None)?;
        head(&states.f_select(1, -1)?)
    })]
    #[loss(mse_loss)]
    #[optimizer(sgd, lr = 0.1)]
    struct Net {
        #[layer(gru(4, 32, batch_first = true))]
        gru: Gru,
        #[layer(linear(32, 1))]
        head: Linear,
    }

    /// Checks that the expected error of a recurrent layer includes the roundings at every position
    /// of the sequence: the layer's measured error is about as large as the expected one.
    #[rstest]
    fn the_expected_error_of_a_layer_has_its_inner_roundings(
        #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
    ) -> Result<()> {
        let options = (Kind::Float, Device::Cpu);
        let x = Tensor::f_arange(16 * 40 * 4, options)?.f_square()?.f_sin()?;
        let x = x.f_reshape([16, 40, 4])?;
        let batch = Batch::new(x, Tensor::f_ones([16, 1], options)?)?.to_any()?;
        let build =
            || -> Result<Box<dyn LightningModule>> { Ok(Box::new(Net::builder().build()?)) };
        let subject = Subject {
            build: &build,
            wrap: None,
            batch: &batch,
            device: Device::Cpu,
            seed: 1,
            overrides: Default::default(),
            batches_per_step: 1,
        };
        let (_, own) = audit(&subject, Options::new(precision))?;
        let own = own.into_iter().find(|own| own.path == "gru");
        let error = own.and_then(|own| own.error).unwrap_or(f64::NAN);
        assert!((0.8..1.25).contains(&error), "{error}");
        Ok(())
    }
}
