//! A crate that re-exports amp-core under another name.

pub use amp as engine;

/// Defines a model that classifies points. The derive runs in the crate that calls this macro.
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
