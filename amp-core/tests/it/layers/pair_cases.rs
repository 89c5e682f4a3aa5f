//! Builds the layers that combine two tensors.

use amp_core::{
    Result,
    nn::{
        Bilinear, BilinearConfig, CosineSimilarity, CosineSimilarityConfig, Forward,
        PairwiseDistance, PairwiseDistanceConfig,
    },
    tch::Tensor,
};

use super::several::{Runs, case};

/// Builds the layer of the recorded case with this name.
pub(super) fn build(name: &str) -> Result<Box<dyn Runs>> {
    let cosine = CosineSimilarityConfig::new();
    let distance = PairwiseDistanceConfig::new();
    match name {
        "bilinear" => pair(Bilinear::new(BilinearConfig::new(3, 4, 5))),
        "bilinear without bias" => {
            pair(Bilinear::new(BilinearConfig { bias: false, ..BilinearConfig::new(3, 2, 4) }))
        }
        "cosine_similarity" => pair(CosineSimilarity::new(cosine)),
        "cosine_similarity short" => {
            pair(CosineSimilarity::new(CosineSimilarityConfig { dim: -1, eps: 2.0 }))
        }
        "pairwise_distance" => pair(PairwiseDistance::new(distance)),
        "pairwise_distance kept" => {
            pair(PairwiseDistance::new(PairwiseDistanceConfig { p: 3.0, eps: 1e-2, keepdim: true }))
        }
        other => panic!("the oracle has a case `{other}` that no module is built for"),
    }
}

fn pair<M>(layer: Result<M>) -> Result<Box<dyn Runs>>
where
    M: Forward<Input = (&'static Tensor, &'static Tensor), Output = Tensor> + 'static,
{
    case(layer, |layer, x, cx| Ok(vec![layer.forward_with((&x[0], &x[1]), cx)?]))
}
