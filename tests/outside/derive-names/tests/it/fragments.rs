//! Tests of the derive macros on structs that a `macro_rules!` macro defines. Their attributes
//! contain fragments of every kind.

use engine::{nn, prelude::*};
use serde_json::json;

use super::{output, step};

macro_rules! net {
    (
        $(#[$meta:meta])*
        $vis:vis $name:ident { $($field:ident: $ty:ty = $default:expr),* $(,)? }
        loss = $loss:expr, metric = $metric:expr, top = $top:literal,
        optimizer = $optimizer:ident, lr = $lr:expr, decay = $decay:tt,
        $layer:ident: $layer_ty:ty = $build:expr, $precision:expr,
        head = ($inputs:expr, $outputs:literal), seen = $seen:ty,
        log = $log:expr, schedule = ($schedule:path, $count:expr, $interval:tt),
    ) => {
        $(#[$meta])*
        #[derive(LightningModule)]
        #[loss($loss)]
        #[metric($metric)]
        #[metric(top_k, k = $top, name = top)]
        #[optimizer($optimizer, lr = $lr, group(params = ["*.bias", $decay], weight_decay = 0.0))]
        #[scheduler($schedule, step_size = $count, interval = $interval)]
        #[log($log)]
        $vis struct $name {
            $(#[hparam(default = $default)] $field: $ty,)*
            #[layer($build)]
            #[precision($precision)]
            $layer: $layer_ty,
            #[layer(linear($inputs, $outputs))]
            head: Linear,
            #[state(<$seen>::default())]
            seen: $seen,
            #[transient($seen::new())]
            cache: $seen,
        }
    };
}

net! {
    /// A model that a `macro_rules!` macro writes.
    pub(crate) Net { width: i64 = 2 + 2, rate: f64 = 1e-2 }
    loss = cross_entropy, metric = accuracy, top = 2,
    optimizer = adamw, lr = self.rate * 0.5, decay = "head.*",
    body: Sequential = sequential(linear(2, width), relu), fp32,
    head = (width, 2), seen = Vec<f64>,
    log = train_loss(on_epoch, prog_bar), schedule = (step_lr, plan.max_epochs, epoch),
}

#[test]
fn a_model_of_fragments_trains() {
    let mut model = Net::builder().build().expect("a model");
    let values = serde_json::to_value(model.hyperparameters()).expect("values");
    assert_eq!(values, json!({ "width": 4, "rate": 1e-2 }));
    assert!(step(&mut model).is_finite());
    assert!(model.seen.is_empty() && model.cache.is_empty());
}

macro_rules! block {
    ($name:ident<$param:ident>, $given:ty, $factor:expr, $forward:expr, $b:block, $pat:pat) => {
        #[derive(Module)]
        #[forward($forward)]
        pub(crate) struct $name<$param> {
            #[hparam(default = 2 * $factor)]
            product: i64,
            #[hparam(default = vec![2 * $factor, $factor * 2])]
            products: Vec<i64>,
            #[hparam(default = if matches!($factor, $pat) $b else { 0 })]
            chosen: i64,
            #[layer]
            given: $given,
        }
    };
}

block!(Scaled<M>, Option<M>, 1 + 2, |x| Ok(given(x)? * self.product as f64), { 7 }, -1..=3);

/// If a macro passes the fragment `1 + 2` into a product, the fragment keeps its value 3. rustc
/// drops the invisible groups around fragments in the output of a derive macro, so the derive macro
/// must write parentheses.
#[test]
fn a_fragment_keeps_its_value() {
    let block = Scaled::builder(Some(Identity)).build().expect("a block");
    assert_eq!((block.product, block.products.as_slice(), block.chosen), (6, &[6, 6][..], 7));
    let input = Tensor::from_slice(&[1.0_f32, 2.0]);
    assert_eq!(output(&block, &input), Tensor::from_slice(&[6.0_f32, 12.0]));
}

macro_rules! counting {
    ($count:ident, $seen:tt) => {
        #[derive(LightningModule)]
        #[loss(mse_loss)]
        #[optimizer(sgd, lr = 0.1)]
        pub(crate) struct Counting {
            #[layer(linear(2, 1))]
            head: Linear,
            #[state]
            count: $count,
            #[state]
            seen: $seen,
        }
    };
}

counting!(u64, (u8, u8));

/// The type in `#[state]` can be a macro fragment of kind `ident` or `tt`. Unlike other fragments,
/// these are not in an invisible group.
#[test]
fn state_can_have_a_type_of_the_caller() {
    let model = Counting::builder().build().expect("a model");
    assert_eq!((model.count, model.seen), (0, (0, 0)));
}

macro_rules! hygienic {
    ($build:expr, $forward:expr, $loss:expr, $lr:expr, $steps:expr) => {
        #[derive(LightningModule)]
        #[forward($forward)]
        #[loss(with = $loss)]
        #[optimizer(sgd, lr = $lr)]
        #[scheduler(step_lr, step_size = $steps)]
        pub(crate) struct Hygienic {
            #[hparam(default = 3)]
            width: i64,
            #[hparam(default = 0.5)]
            scale: f64,
            #[layer($build)]
            body: Linear,
            #[layer(linear(width, 2))]
            head: nn::Linear,
        }
    };
}

// The macro defines the fields, and the macro's caller writes the expressions in which `self`,
// `cx`, `plan` and the names of the fields occur. The derive macro must resolve these names in
// spite of macro hygiene.
hygienic!(
    linear(2, width),
    |x| {
        let y = cx.region(Region::Fp32, x, |x| body(x))?;
        self.head.forward(&vec![y].remove(0), cx)
    },
    |output, target| Ok(loss::cross_entropy(output, target)? * self.scale),
    [self.scale].len() as f64 * 0.1,
    plan.max_epochs + 1
);

#[test]
fn a_caller_can_name_fields_of_the_macro() {
    let mut model = Hygienic::builder().width(5).build().expect("a model");
    assert!(step(&mut model).is_finite());
}
