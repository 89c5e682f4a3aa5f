//! Tests the gradients of attention on CUDA. The gradient of the output may have two memory
//! layouts, and both are tested.

use amp_core::{
    Result,
    nn::{AttentionOptions, scaled_dot_product_attention},
    tch::{Kind, Tensor},
};
use rstest::rstest;

use crate::support::{bits::relative, device, needs_cuda, seeded};

/// Returns the batch size, the number of heads, the sequence length, and the width of a head. The
/// batch size differs between cases that begin with different layouts. Otherwise a case could reuse
/// the backward pass that cuDNN compiled for a case that began with the other layout.
fn sizes(first: Layout) -> [i64; 4] {
    [32 + first as i64, 4, 24, 8]
}

/// The memory layout of the output's gradient `[N, heads, L, width]`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Layout {
    /// For each word, its heads are next to each other in memory, as in the output.
    ByWord,
    /// For each head, its words are next to each other in memory.
    ByHead,
}

/// Returns the gradient with respect to the tensor `[N, L, 3·heads·width]`, which contains queries,
/// keys and values.
fn gradient(
    [product, weights]: [&Tensor; 2],
    mask: Option<&Tensor>,
    [n, heads, length, width]: [i64; 4],
    layout: Layout,
) -> Result<Tensor> {
    let leaf = product.detach().set_requires_grad(true);
    let parts = leaf.chunk(3, 2);
    let [q, k, v] =
        [0, 1, 2].map(|part: usize| parts[part].view([n, length, heads, width]).transpose(1, 2));
    let options = AttentionOptions { attn_mask: mask, ..Default::default() };
    let output = scaled_dot_product_attention(&q, &k, &v, &options)?;
    // Autograd gives the result of `flat` a contiguous gradient. Whether `flat` transposes before
    // `reshape` therefore decides the memory layout of the output's gradient.
    let flat = |x: &Tensor| match layout {
        Layout::ByWord => x.transpose(1, 2).reshape([n, length * heads * width]),
        Layout::ByHead => x.reshape([n, length * heads * width]),
    };
    let loss = (flat(&output) * flat(weights)).sum(Kind::Float);
    let gradient = Tensor::f_run_backward(&[loss], &[&leaf], false, false)?.remove(0);
    Ok(gradient.to_kind(Kind::Double))
}

/// The gradients of queries, keys and values equal those computed in f64, for both memory layouts
/// of the output's gradient, whichever layout comes first. The order matters: cuDNN compiles a
/// backward pass for the first layout, and libtorch reuses it for gradients with the second layout.
#[rstest]
#[ignore]
fn each_layout_gives_the_same_gradients(
    #[values((Kind::Half, -11), (Kind::BFloat16, -8))] (kind, rounding): (Kind, i32),
    #[values(true, false)] is_masked: bool,
    #[values([Layout::ByWord, Layout::ByHead], [Layout::ByHead, Layout::ByWord])] order: [Layout;
        2],
) -> Result<()> {
    needs_cuda();
    let _generator = seeded(3);
    let sizes = sizes(order[0]);
    let [n, heads, length, width] = sizes;
    let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, device())).to_kind(kind);
    let product = draw(&[n, length, 3 * heads * width]);
    let weights = draw(&[n, heads, length, width]);
    let lengths = Tensor::randint_low(4, length + 1, [n, 1], (Kind::Int64, device()));
    let allowed = Tensor::arange(length, (Kind::Int64, device())).lt_tensor(&lengths);
    let allowed = allowed.view([n, 1, 1, length]);
    let mask = is_masked.then_some(&allowed);
    let wide = [&product, &weights].map(|x| x.to_kind(Kind::Double));
    for layout in order {
        let exact = gradient([&wide[0], &wide[1]], mask, sizes, layout)?;
        let found = gradient([&product, &weights], mask, sizes, layout)?;
        let error = relative(&found, &exact);
        assert!(error < 8.0 * 2.0_f64.powi(rounding), "{layout:?}: {error:.1e}");
    }
    Ok(())
}
