//! A crate that has amp-core and hands it on under another name.

pub use amp as engine;

/// A classifier of points, derived in the crate of whoever calls this.
#[macro_export]
macro_rules! classifier {
    ($vis:vis $name:ident, $width:expr) => {
        #[derive($crate::engine::LightningModule)]
        #[amp(crate = $crate::engine)]
        #[loss(cross_entropy)]
        #[optimizer(sgd, lr = 0.1)]
        $vis struct $name {
            #[layer(sequential(linear(2, $width), relu, linear($width, 2)))]
            body: $crate::engine::nn::Sequential,
        }
    };
}
