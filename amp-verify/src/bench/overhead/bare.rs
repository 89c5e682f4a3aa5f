//! The tensor work of a training loop and nothing else.

use amp_core::{
    LightningModule, Result,
    data::Batch,
    nn::{named_tensors, parameters},
    optim::{Optimizer, Storage, TrainingPlan},
    tch::{Device, Kind, Reduction, Tensor},
};

use super::{BATCH, STEPS};

/// A layer as the calls that libtorch gets of it.
enum Call {
    Linear { weight: Tensor, bias: Tensor },
    BatchNorm { weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, batches: Tensor },
    Relu,
    Dropout(f64),
}

impl Call {
    fn run(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Linear { weight, bias } => x.linear(weight, Some(bias)),
            Self::BatchNorm { weight, bias, mean, var, batches } => {
                let _ = batches.shallow_clone().g_add_scalar_(1);
                let (weight, bias) = (Some(weight), Some(bias));
                x.batch_norm(weight, bias, Some(mean), Some(var), true, 0.1, 1e-5, true)
            }
            Self::Relu => x.relu(),
            Self::Dropout(p) => x.dropout(*p, true),
        }
    }
}

/// The same training without the trainer.
pub struct Bare {
    calls: Vec<Call>,
    optimizer: Box<dyn Optimizer>,
    /// Whether the accuracy of training is logged as well.
    accuracy: bool,
}

impl Bare {
    /// Over the tensors of `model`: each layer by the sizes of what it has.
    pub(super) fn new(model: &dyn LightningModule, dropout: Option<f64>) -> Result<Self> {
        let plan = TrainingPlan { max_epochs: 1, estimated_stepping_batches: STEPS };
        let optimizers = model.configure_optimizers(&plan)?;
        let mut built = optimizers.build(parameters(model), Storage::default())?;
        let optimizer = built.remove(0).optimizer;
        let mut calls = Vec::new();
        let mut tensors = named_tensors(model).into_iter().map(|(_, tensor, _)| tensor).peekable();
        let next = |tensors: &mut dyn Iterator<Item = Tensor>| tensors.next().expect("a tensor");
        while let Some(weight) = tensors.next() {
            let bias = next(&mut tensors);
            if weight.dim() == 1 {
                let (mean, var) = (next(&mut tensors), next(&mut tensors));
                let batches = next(&mut tensors);
                calls.push(Call::BatchNorm { weight, bias, mean, var, batches });
            } else {
                calls.push(Call::Linear { weight, bias });
            }
            // A ReLU, and perhaps a dropout, comes before every linear layer but the first.
            if tensors.peek().is_some_and(|next| next.dim() == 2) {
                calls.push(Call::Relu);
                calls.extend(dropout.map(Call::Dropout));
            }
        }
        Ok(Self { calls, optimizer, accuracy: dropout.is_some() })
    }

    /// Trains an epoch.
    ///
    /// # Errors
    /// When libtorch does.
    pub fn epoch(&mut self, data: &Batch) -> Result<()> {
        let scalar = || Tensor::zeros([], (Kind::Double, Device::Cpu));
        let (mut losses, mut hits) = (scalar(), scalar());
        for start in (0..data.len()).step_by(BATCH as usize) {
            let input = data.input.narrow(0, start, BATCH);
            let target = data.target.narrow(0, start, BATCH);
            self.optimizer.zero_grad()?;
            let output = self.calls.iter().fold(input, |x, call| call.run(&x));
            let none = None::<Tensor>;
            let loss = output.cross_entropy_loss(&target, none, Reduction::Mean, -100, 0.0);
            losses += loss.detach().to_kind(Kind::Double) * BATCH as f64;
            if self.accuracy {
                let right = output.detach().argmax(1, false).eq_tensor(&target);
                hits += right.sum(Kind::Double);
            }
            loss.backward();
            self.optimizer.step()?;
        }
        Ok(())
    }
}
