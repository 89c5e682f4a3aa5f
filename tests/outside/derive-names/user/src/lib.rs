//! A crate that depends on amp-core only through `kit`.

use kit::engine::prelude::*;

/// A model whose attribute names amp-core by a path in quotes, as serde's `crate` attribute does.
#[derive(LightningModule)]
#[amp(crate = "kit::engine")]
#[loss(cross_entropy)]
#[metric(accuracy, name = acc)]
#[optimizer(adamw, lr = 1e-2)]
pub struct Quoted {
    #[layer(linear(2, 8))]
    body: Linear,
    #[layer(Rise::builder().build()?)]
    rise: Rise,
    #[layer(linear(8, 2))]
    head: Linear,
}

/// A block with `#[amp(crate = …)]`, where the path to amp-core is written without quotes. Blocks
/// take this attribute as models do.
#[derive(Module)]
#[amp(crate = kit::engine)]
#[forward(|x| Ok(relu(x)?.f_add_scalar(1.0)?))]
pub struct Rise {
    #[layer(relu)]
    relu: Relu,
}

kit::classifier!(pub Made, 4 + 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_built_where_amp_core_is_not_a_dependency() -> Result<()> {
        let quoted = Quoted::builder().build()?;
        assert_eq!(quoted.name(), "Quoted");
        let made = Made::builder().build()?;
        let input = Tensor::zeros([3, 2], (Kind::Float, Device::Cpu));
        let policy = kit::engine::precision::Policy::new(Precision::F32True, Device::Cpu);
        let context = Context::new(policy, true);
        for model in [&quoted as &dyn Module, &made] {
            assert_eq!(model.forward(&input, &context)?.size(), [3, 2]);
        }
        Ok(())
    }
}
