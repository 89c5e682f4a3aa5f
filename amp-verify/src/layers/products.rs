//! Counts how many multiplications a model's layers need.

use std::{cell::Cell, rc::Rc};

use amp_core::{
    Result, Step,
    log::Log,
    nn::{Call, Context, Op, Parameter, Probe, parameters, place},
    precision::{Policy, Precision},
    random,
    trainer::first_loss,
};

use super::Subject;

/// Counts the multiplications by weights in one forward pass. In a convolution, for example, each
/// weight is multiplied once for each position of the output. Products without a weight, such as
/// those of attention, do not count.
///
/// # Errors
/// When the forward pass fails.
pub(crate) fn products(subject: &Subject<'_>) -> Result<f64> {
    let policy = Policy::new(Precision::F32True, subject.device);
    let _section = random::seeded(subject.seed)?;
    let mut model = subject.model()?;
    let mut model = subject.prepared(&mut model)?;
    place(model.as_mut(), policy, &subject.overrides)?;
    let counter =
        Rc::new(Counter { parameters: parameters(model.as_mut()), products: Cell::default() });
    let context = Context::new(policy, true)
        .with_overrides(subject.overrides.clone())
        .without_checkpointing()
        .with_probe(counter.clone());
    let mut log = Log::default();
    // Autograd stays on, because the loss may have a gradient penalty.
    let batch = subject.batch.place(policy)?;
    let _ = first_loss(model.as_mut(), &batch, &mut Step::new(&context, &mut log, 0, 0))?;
    Ok(counter.products.get())
}

struct Counter {
    parameters: Vec<Parameter>,
    products: Cell<f64>,
}

impl Probe for Counter {
    fn ran(&self, call: &Call<'_>) {
        if call.op != Op::Matmul {
            return;
        }
        let own = self.parameters.iter().filter(|own| super::pass::is_own(call.path, &own.name));
        for weight in own.filter(|own| own.tensor.dim() > 1) {
            let outputs = weight.tensor.size().first().copied().unwrap_or(1).max(1);
            let more = (weight.tensor.numel() * call.output.numel()) as f64 / outputs as f64;
            self.products.set(self.products.get() + more);
        }
    }
}

#[cfg(test)]
mod tests {
    use amp_core::{
        data::{Batch, BatchType},
        prelude::*,
        tch::{Device, Kind, Tensor},
    };

    use super::*;

    /// A linear layer and a convolution with a stride.
    #[derive(LightningModule)]
    #[forward(|x| head(&conv(x)?.f_flatten(1, -1)?))]
    #[loss(mse_loss)]
    #[optimizer(sgd, lr = 0.1)]
    struct Net {
        #[layer(conv2d(3, 4, 3, stride = 2))]
        conv: Conv2d,
        #[layer(linear(36, 5))]
        head: Linear,
    }

    /// Checks the number of multiplications. The batch has 2 examples. For each, the convolution
    /// multiplies its 4·3·3·3 weights at 3·3 positions, and the linear layer multiplies its 36·5
    /// weights once.
    #[test]
    fn products_are_those_of_the_definition() -> Result<()> {
        let options = (Kind::Float, Device::Cpu);
        let x = Tensor::f_zeros([2, 3, 7, 7], options)?;
        let batch = Batch::new(x, Tensor::f_zeros([2, 5], options)?)?.to_any()?;
        let build =
            || -> Result<Box<dyn LightningModule>> { Ok(Box::new(Net::builder().build()?)) };
        let subject = Subject {
            build: &build,
            wrap: None,
            batch: &batch,
            device: Device::Cpu,
            seed: 1,
            overrides: Rc::default(),
            batches_per_step: 1,
        };
        assert_eq!(products(&subject)?, 2.0 * (108.0 * 9.0 + 180.0));
        Ok(())
    }
}
