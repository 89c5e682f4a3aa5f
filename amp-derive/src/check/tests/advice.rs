//! Tests that the derive macro prints its warnings.

use super::*;

#[test]
fn batch_norm_after_half_precision_is_warned_about() {
    let source = |first, second| {
        format!(
            "{TRAINED} struct Net {{ #[layer(linear(4, 4))] {first} a: Linear, \
             #[layer(sequential(relu, batch_norm1d(4)))] {second} b: Sequential }}"
        )
    };
    advises(
        &source("#[precision(fp16)]", ""),
        &[("batch_norm1d", "BATCH_NORM_AFTER_LOW_PRECISION")],
    );
    advises(&source("#[precision(fp16)]", "#[precision(fp32)]"), &[]);
    advises(&source("#[precision(fp32)]", ""), &[]);
    advises(&source("", ""), &[]);
}
