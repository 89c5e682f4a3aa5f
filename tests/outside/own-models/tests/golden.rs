//! Compares each model under 16-mixed and bf16-mixed with its golden (its recorded results) in
//! `tests/goldens`.

use amp_verify::verify;
use own_models::registry;

#[test]
fn ring_net() {
    verify!(RingNet, registry = registry());
}

#[test]
fn next_symbol() {
    verify!(NextSymbol, registry = registry());
}
