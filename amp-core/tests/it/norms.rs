//! Tests of inputs that batch, group and instance norms cannot normalize, and of refused options.

use amp_core::{
    Module, Result,
    nn::{
        self, BatchNorm, BatchNormConfig, Context, GroupNorm, GroupNormConfig, InstanceNorm,
        InstanceNormConfig, LayerNorm, LayerNormConfig, Relu, RmsNorm, RmsNormConfig, Sequential,
        named_tensors,
    },
    precision::{Policy, Precision},
    tch::{Kind, Tensor},
};
use rstest::rstest;

use crate::support::{device, message};

fn policy() -> Policy {
    Policy::new(Precision::F32True, device())
}

fn batch_norm() -> Result<BatchNorm> {
    let norm = BatchNorm::new(BatchNormConfig::new(3))?;
    nn::place(&norm, policy(), &Default::default())?;
    Ok(norm)
}

fn zeros(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Float, device()))
}

/// Returns running mean and variance, and the number of batches.
fn statistics(module: &impl nn::Visit) -> Vec<Vec<f64>> {
    named_tensors(module)
        .into_iter()
        .filter(|(_, _, role)| *role == nn::Role::Buffer)
        .map(|(_, tensor, _)| crate::support::bits::values(&tensor.reshape([-1])))
        .collect()
}

/// In training, a batch norm refuses a batch that has only one value for each channel, as
/// torch.nn.functional does. The running statistics do not change. With more values per channel,
/// and in evaluation, the norm accepts the input.
#[rstest]
fn one_value_for_each_channel_is_refused(
    #[values(&[1, 3], &[1, 3, 1], &[1, 3, 1, 1], &[0, 3], &[2, 3, 0])] shape: &[i64],
    #[values(false, true)] with_relu: bool,
) -> Result<()> {
    let train = Context::new(policy(), true);
    let norm = batch_norm()?;
    let before = statistics(&norm);
    let said = match with_relu {
        false => message(norm.forward(&zeros(shape), &train)),
        true => {
            let layers: Vec<Box<dyn Module>> = vec![Box::new(batch_norm()?), Box::new(Relu)];
            let said = message(Sequential::new(layers).forward(&zeros(shape), &train));
            assert!(said.starts_with("in `0`: "), "{said}");
            said
        }
    };
    assert!(said.contains(&format!("batch norm cannot train on an input {shape:?}")), "{said}");
    assert_eq!(statistics(&norm), before);
    let evaluation = Context::new(policy(), false);
    assert_eq!(norm.forward(&zeros(shape), &evaluation)?.size(), shape);
    for enough in [&[2, 3][..], &[1, 3, 2], &[1, 3, 1, 2]] {
        let _ = norm.forward(&zeros(enough), &train)?;
        assert!(statistics(&norm).concat().iter().all(|value| value.is_finite()));
    }
    Ok(())
}

#[rstest]
#[case(BatchNormConfig { eps: 0.0, ..BatchNormConfig::new(3) }, "eps is 0, but must be above 0")]
#[case(BatchNormConfig { eps: f64::NAN, ..BatchNormConfig::new(3) }, "eps is NaN")]
#[case(BatchNormConfig { eps: -1e-5, ..BatchNormConfig::new(3) }, "eps is -0.00001")]
#[case(BatchNormConfig { momentum: 1.5, ..BatchNormConfig::new(3) }, "momentum is 1.5")]
#[case(BatchNormConfig { momentum: f64::NAN, ..BatchNormConfig::new(3) }, "momentum is NaN")]
#[case(BatchNormConfig::new(0), "num_features is 0, but must be at least 1")]
fn options_out_of_range_are_refused(#[case] config: BatchNormConfig, #[case] says: &str) {
    let said = message(BatchNorm::new(config));
    assert!(said.starts_with("batch norm: ") && said.contains(says), "{said}");
    if config.eps <= 0.0 || config.eps.is_nan() {
        let said =
            message(LayerNorm::new(LayerNormConfig { eps: config.eps, ..LayerNormConfig::new(3) }));
        assert!(said.starts_with("layer norm: ") && said.contains(says), "{said}");
    }
}

/// Group norm and instance norm refuse an input that has only one value per group or channel,
/// because the output would equal the bias for any input.
#[rstest]
fn one_value_within_an_example_is_refused(
    #[values(&[4, 6], &[4, 6, 1], &[1, 6, 1, 1])] shape: &[i64],
) -> Result<()> {
    let cx = Context::new(policy(), true);
    let group = GroupNorm::new(GroupNormConfig::new(6, 6))?;
    nn::place(&group, policy(), &Default::default())?;
    let said = message(group.forward(&zeros(shape), &cx));
    assert!(said.contains("each of the 6 groups") && said.contains("only one value"), "{said}");
    let fewer = GroupNorm::new(GroupNormConfig::new(3, 6))?;
    nn::place(&fewer, policy(), &Default::default())?;
    assert_eq!(fewer.forward(&zeros(shape), &cx)?.size(), shape);
    if shape.len() > 2 {
        let instance = InstanceNorm::new(InstanceNormConfig::new(6))?;
        let said = message(instance.forward(&zeros(shape), &cx));
        assert!(said.contains("only one value, so its variance cannot be computed"), "{said}");
    }
    Ok(())
}

#[rstest]
fn a_norm_over_no_values_is_refused(#[values(0.0, -1.0, f64::NAN)] eps: f64) {
    let refused = [
        message(GroupNorm::new(GroupNormConfig { eps, ..GroupNormConfig::new(2, 4) })),
        message(InstanceNorm::new(InstanceNormConfig { eps, ..InstanceNormConfig::new(4) })),
        message(RmsNorm::new(RmsNormConfig { eps: Some(eps), ..RmsNormConfig::new(4) })),
    ];
    for said in refused {
        assert!(said.contains("eps is") && said.contains("above 0"), "{said}");
    }
}
