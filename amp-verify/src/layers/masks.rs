//! Finds out whether dropout zeroes the same elements in several dtypes.

use amp_core::{
    Result, random,
    tch::{Device, Kind, Tensor},
};

/// Returns whether dropout zeroes the same elements in all these dtypes if the seeds are equal.
/// This is so on the CPU, but not on CUDA, where the number of elements that one thread draws
/// depends on the dtype.
pub(super) fn masks_agree(device: Device, kinds: &[Kind]) -> Result<bool> {
    let draw = |kind: Kind| -> Result<Tensor> {
        let _section = random::seeded(0)?;
        let mut drawn = Vec::new();
        for size in [7, 1000, 65_537] {
            drawn.push(Tensor::f_ones([size], (kind, device))?.f_dropout(0.5, true)?.f_ne(0.0)?);
        }
        // All attention weights are equal, and the values are an identity matrix. So the output
        // shows which attention weights dropout set to zero.
        let zeros = Tensor::f_zeros([2, 2, 16, 16], (kind, device))?;
        let values = Tensor::f_eye(16, (kind, device))?.f_expand([2, 2, 16, 16], false)?;
        let attended = Tensor::f_scaled_dot_product_attention(
            &zeros,
            &zeros,
            &values.f_contiguous()?,
            None::<Tensor>,
            0.5,
            false,
            None,
            false,
        )?;
        drawn.push(attended.f_ne(0.0)?.f_flatten(0, -1)?);
        Ok(Tensor::f_cat(&drawn, 0)?)
    };
    let first = draw(Kind::Double)?;
    for kind in kinds {
        if !draw(*kind)?.f_equal(&first)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use amp_core::{
        data::{Batch, BatchType},
        nn::{FaultyLayer, LayerFault},
        precision::Precision,
        prelude::*,
        tch::{Device, Kind, Tensor},
    };

    use crate::layers::{Options, Own, Subject, WITHIN, audit};

    #[derive(LightningModule)]
    #[forward(|x| head(&dropped(&first(x)?)?))]
    #[loss(mse_loss)]
    #[optimizer(sgd, lr = 0.1)]
    struct Net {
        #[layer(linear(16, 64))]
        first: Linear,
        #[layer(dropout(0.3))]
        dropped: Dropout,
        #[layer(linear(64, 1))]
        head: Linear,
    }

    /// Checks that the rounding error of a dropout layer is within its bound, because all separate
    /// runs of the layer zero the same elements. If an injected fault makes the layer round to
    /// fewer digits, the error exceeds the bound.
    #[test]
    fn a_layer_that_drops_elements_is_judged_by_its_rounding() -> Result<()> {
        let options = (Kind::Float, Device::Cpu);
        let x = Tensor::f_linspace(-2.0, 2.0, 512, options)?.f_reshape([32, 16])?;
        let batch = Batch::new(x, Tensor::f_ones([32, 1], options)?)?.to_any()?;
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
        let error = || -> Result<f64> {
            let (_, own) = audit(&subject, Options::new(Precision::F16Mixed))?;
            let own: Option<Own> = own.into_iter().find(|own| own.path == "dropped");
            Ok(own.and_then(|own| own.error).unwrap_or(f64::NAN))
        };
        let unchanged = error()?;
        assert!((0.5..WITHIN).contains(&unchanged), "{unchanged}");
        let _planted = FaultyLayer::new("dropped", LayerFault::LosesDigits);
        let broken = error()?;
        assert!(broken > WITHIN, "{broken}");
        Ok(())
    }
}
