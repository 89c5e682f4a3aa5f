//! `cargo amp selftest` on a few faults; all of them take two minutes.

use amp_verify::selftest::Fault;
use tempfile::tempdir;

use crate::support::{amp, device, text};

/// A fault that a rule catches, one that a control does and one that pairing does.
#[test]
fn faults_are_caught() {
    let folder = tempdir().expect("a folder");
    let output = amp(folder.path())
        .args(["selftest", "--repetitions", "1", "--device", &device()])
        .args(["--fault", "wrong_scale_on_one_layer,nothing_learns,seed_not_paired"])
        .output()
        .expect("the binary runs");
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{out}{}", text(&output.stderr));
    assert!(out.contains("kill rate: 4 of 4 (100%)"), "{out}");
    assert!(out.contains("false-alarm rate: 0 of 2 cells in 1 unchanged runs"), "{out}");
}

#[test]
fn every_fault_has_its_own_description() {
    let about: std::collections::BTreeSet<_> = Fault::ALL.iter().map(|f| f.about()).collect();
    assert_eq!(about.len(), Fault::ALL.len());
    assert!(Fault::ALL.iter().filter(|fault| !fault.needs_cuda()).count() >= 15);
}
