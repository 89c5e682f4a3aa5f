//! Builds the recorded cases of max pooling that also returns indices, and of unpooling with these
//! indices.

use amp_core::{
    Result,
    nn::{
        Forward, FractionalMaxPool, FractionalMaxPool2d, FractionalMaxPool2dConfig,
        FractionalMaxPool3d, FractionalMaxPool3dConfig, MaxPool, MaxPool1d, MaxPool1dConfig,
        MaxPool2d, MaxPool2dConfig, MaxPool3d, MaxPool3dConfig, MaxUnpool, MaxUnpool1d,
        MaxUnpool1dConfig, MaxUnpool2d, MaxUnpool2dConfig, MaxUnpool3d, MaxUnpool3dConfig,
    },
};

use super::several::{Runs, case};

/// Builds the modules of the recorded case with this name.
pub(super) fn build(name: &str) -> Result<Box<dyn Runs>> {
    match name {
        "max_unpool1d" => unpool(
            MaxPool1d::new(MaxPool1dConfig::new(2)),
            MaxUnpool1d::new(MaxUnpool1dConfig::new(2)),
            true,
        ),
        "max_unpool2d" => unpool(
            MaxPool2d::new(MaxPool2dConfig {
                padding: [1, 0].into(),
                ..MaxPool2dConfig::new([3, 2])
            }),
            MaxUnpool2d::new(MaxUnpool2dConfig {
                padding: [1, 0].into(),
                ..MaxUnpool2dConfig::new([3, 2])
            }),
            false,
        ),
        "max_unpool3d" => unpool(
            MaxPool3d::new(MaxPool3dConfig::new(2)),
            MaxUnpool3d::new(MaxUnpool3dConfig::new(2)),
            true,
        ),
        "fractional_max_pool2d" => {
            fractional(FractionalMaxPool2d::new(FractionalMaxPool2dConfig {
                output_ratio: [0.5, 0.7].into(),
                ..FractionalMaxPool2dConfig::new([2, 3])
            }))
        }
        "fractional_max_pool3d" => {
            fractional(FractionalMaxPool3d::new(FractionalMaxPool3dConfig {
                output_size: [2, 3, 2].into(),
                ..FractionalMaxPool3dConfig::new(2)
            }))
        }
        other => panic!("the oracle has a case `{other}` that no module is built for"),
    }
}

/// Builds a test case that pools and then unpools. Unpooling puts the largest values back to their
/// positions. If `sized` is true, the output of unpooling has the size of the input. Otherwise it
/// has the default size.
fn unpool<const N: usize>(
    pool: Result<MaxPool<N>>,
    back: Result<MaxUnpool<N>>,
    sized: bool,
) -> Result<Box<dyn Runs>> {
    let pool = pool?;
    case(back, move |back, x, cx| {
        let (largest, places) = pool.forward_with_indices(&x[0], cx)?;
        let size = x[0].size();
        let size = sized.then_some(&size[2..]);
        let put_back = back.forward_with((&largest, &places, size), cx)?;
        Ok(vec![largest, put_back])
    })
}

/// Builds a case of fractional max pooling. The random numbers that determine the windows are
/// computed from the second input.
fn fractional<const N: usize>(pool: Result<FractionalMaxPool<N>>) -> Result<Box<dyn Runs>> {
    case(pool, |pool, x, cx| {
        let samples = x[1].detach().abs().frac();
        let (largest, places) = pool.forward_with_samples(&x[0], &samples, cx)?;
        let places = places.to_kind(largest.kind());
        Ok(vec![largest, places])
    })
}
