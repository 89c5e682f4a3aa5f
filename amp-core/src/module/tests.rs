use crate::prelude::*;

/// The derive generates paths that begin with `::amp_core`. This model checks that such paths are
/// valid inside amp-core, too.
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
