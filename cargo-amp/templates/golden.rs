//! Goldens: what training gives under every precision is held against `tests/goldens`.

use my_model::registry;

#[test]
fn spiral_net() {
    amp_verify::verify!(SpiralNet, registry = registry());
}
