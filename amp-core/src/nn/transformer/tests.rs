//! Tests of transformer layers whose activations are recomputed.

use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use super::*;
use crate::{
    ffi::FlopCounter,
    nn::{AttentionMask, Segment},
    precision::{Policy, Precision},
    random,
};

/// Checks that activation checkpointing works for the layers of an encoder that gets a mask, and
/// gives the same gradients as without it. The recomputation must use the mask of the forward pass,
/// even if the mask tensor is changed before the backward pass.
#[test]
fn a_masked_stack_can_be_checkpointed() -> Result<()> {
    let _section = random::seeded(0)?;
    let config = TransformerStackConfig {
        dim_feedforward: 8,
        norm: true,
        ..TransformerStackConfig::new(8, 2, 3)
    };
    let stack = TransformerEncoder::new(config)?;
    let x = Tensor::f_randn([2, 4, 8], (Kind::Float, Device::Cpu))?.f_set_requires_grad(true)?;
    let gradient = |segments: &[Segment], changes_mask: bool| -> Result<(Tensor, u64)> {
        tch::manual_seed(1);
        let padding = Tensor::f_zeros([2, 4], (Kind::Bool, Device::Cpu))?;
        let _ = padding.f_get(0)?.f_narrow(0, 2, 2)?.f_fill_(1)?;
        let policy = Policy::new(Precision::F32True, Device::Cpu);
        let cx = Context::new(policy, true).with_segments(Rc::from(segments));
        let output = stack.forward_masked(&x, &AttentionMask::padding(&padding), &cx)?;
        if changes_mask {
            let _ = padding.shallow_clone().f_fill_(0)?;
        }
        let loss = output.f_square()?.f_mul(&x.f_detach()?)?.f_sum(Kind::Float)?;
        let operations = FlopCounter::start()?;
        let gradient = Tensor::f_run_backward(&[loss], &[&x], false, false)?.remove(0);
        Ok((gradient, operations.read()?))
    };
    let segments = [Segment { path: "layers".to_owned(), layers: Some(0..2) }];
    let (plain, operations) = gradient(&[], false)?;
    for changes_mask in [false, true] {
        let (again, more) = gradient(&segments, changes_mask)?;
        assert!(again.equal(&plain));
        assert!(more > operations, "two layers are recomputed");
    }
    Ok(())
}
