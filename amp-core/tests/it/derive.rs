//! Tests that the derive macros find amp-core in amp-core's own integration tests. There,
//! Cargo's package is amp-core, but the crate is a separate one that imports amp-core.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct Net {
    #[layer(linear(2, 3))]
    body: Linear,
}

#[test]
fn a_model_is_derived_in_a_test_of_amp_core() {
    let net = Net::builder().build().expect("a model");
    assert_eq!(net.name(), "Net");
}
