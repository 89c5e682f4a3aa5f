//! `cargo amp selftest` on a few faults; all of them take two minutes.

use amp_core::hardware::set_numerics;
use amp_verify::{gate::product_error, selftest::Fault};
use tempfile::tempdir;

use crate::support::{amp, device, generator, text, torch_device};

/// A fault that a rule catches, one that a control does and two that pairing does; on CUDA one of
/// these by its products, too.
#[test]
fn faults_are_caught() {
    let folder = tempdir().expect("a folder");
    let output = amp(folder.path())
        .args(["selftest", "--repetitions", "1", "--device", &device()])
        .args(["--fault", "wrong_scale_on_one_layer,nothing_learns,seed_not_paired,tf32_baseline"])
        .output()
        .expect("the binary runs");
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{out}{}", text(&output.stderr));
    assert!(out.contains("kill rate: 5 of 5 (100%)"), "{out}");
    let said = if device() == "cpu" { "other settings" } else { "as in TF32" };
    assert!(out.contains(said), "{out}");
    assert!(out.contains("false-alarm rate: 0 of 2 cells in 1 unchanged runs"), "{out}");
}

#[test]
fn every_fault_has_its_own_description() {
    let about: std::collections::BTreeSet<_> = Fault::ALL.iter().map(|f| f.about()).collect();
    assert_eq!(about.len(), Fault::ALL.len());
    assert!(Fault::ALL.len() >= 15);
}

/// Products tell TF32 from f32, whichever switch turned it on.
#[test]
fn products_in_tf32_are_told_from_those_in_f32() {
    let _generator = generator();
    let device = torch_device();
    set_numerics(false, false).expect("a switch");
    let exact = product_error(device).expect("a product");
    assert!(exact > 0.0 && exact < 1e-6, "{exact:e}");
    if device.is_cuda() {
        set_numerics(true, false).expect("a switch");
        let tf32 = product_error(device).expect("a product");
        set_numerics(false, false).expect("a switch");
        assert!(tf32 > 1e-4 && tf32 < 1e-3, "{tf32:e}");
    }
}
