//! A mistake in a generic struct causes only one error, and none where the struct is built or used.

use std::marker::PhantomData;

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropi)]
#[optimizer(adamw, lr = 1e-3)]
struct Net<'a, M: Module, const N: usize>
where
    M: 'a,
{
    #[hparam]
    width: i64,
    #[hparam(default = 1)]
    depth: i64,
    #[layer]
    backbone: M,
    #[state]
    marker: PhantomData<&'a [M; N]>,
}

fn train(_: impl LightningModule) {}

fn main() {
    let net = Net::<_, 3>::builder(64, Relu).depth(2).build();
    train(net.unwrap());
}
