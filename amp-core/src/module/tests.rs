use crate::prelude::*;

/// This model is derived inside amp-core. The test checks that the generated paths, which begin
/// with `::amp_core`, are valid here too.
#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct Net {
    #[layer(linear(2, 3))]
    body: Linear,
}

#[test]
fn a_model_is_derived_in_amp_core_itself() {
    let net = Net::builder().build().expect("a model");
    assert_eq!((net.name(), net.body.weight().size()), ("Net", vec![3, 2]));
}
