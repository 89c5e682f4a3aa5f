//! Golden tests: train the model under every precision and compare the results with the recorded
//! ones in `tests/goldens`.

use my_model::registry;

#[test]
fn spiral_net() {
    amp_verify::verify!(SpiralNet, registry = registry());
}
