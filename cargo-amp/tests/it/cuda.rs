//! Tests of fetching libtorch with and without CUDA, and of adding CUDA to a libtorch for CPUs.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::{
    CPU_WHEELS, CUDA_WHEELS, Checkout, assert_refused, assert_succeeded, output, stderr, stdout,
};

/// The note that every command except `setup --cuda` prints if the machine has a driver and the
/// libtorch in the cache has no CUDA.
const NOTE: &str = "note: this machine has an NVIDIA driver, but its libtorch is for CPUs alone: \
                    `cargo amp setup --cuda` adds CUDA\n";

#[test]
fn with_a_driver_cuda_is_fetched_too() {
    let checkout = Checkout::new();
    let run = output(&mut checkout.cargo_amp_with_driver(&["setup"]));
    assert_succeeded(&run);
    assert!(stderr(&run).contains("`cargo amp setup --cpu` leaves CUDA out"), "{}", stderr(&run));
    assert!(stdout(&run).ends_with("/torch (with CUDA)\n"), "{}", stdout(&run));
    assert_eq!(checkout.pip_runs(), CUDA_WHEELS);
    assert_has_cuda(&checkout);
    let second = output(&mut checkout.cargo_amp_with_driver(&["setup"]));
    assert_eq!(stderr(&second), "");
}

#[test]
fn a_driver_without_visible_devices_is_ignored() {
    for hidden in ["", "-1"] {
        let checkout = Checkout::new();
        let mut command = checkout.cargo_amp_with_driver(&["setup"]);
        assert_succeeded(&output(command.env("CUDA_VISIBLE_DEVICES", hidden)));
        assert_eq!(checkout.pip_runs(), CPU_WHEELS);
    }
}

#[test]
fn an_explicit_variant_overrides_the_detected_one() {
    let checkout = Checkout::new();
    let run = output(&mut checkout.cargo_amp_with_driver(&["setup", "--cpu"]));
    assert_succeeded(&run);
    assert!(stdout(&run).ends_with("/torch (for CPUs)\n"), "{}", stdout(&run));
    assert_eq!(checkout.pip_runs(), CPU_WHEELS);

    let checkout = Checkout::new();
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup", "--cuda"])));
    assert_eq!(checkout.pip_runs(), CUDA_WHEELS);
    assert_has_cuda(&checkout);
}

#[test]
fn adding_cuda_keeps_files_that_are_in_use() {
    let checkout = Checkout::new();
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup", "--cpu"])));
    let file = |path: &str| fs::metadata(checkout.home().join(path)).expect("there");
    let in_use = ["torch/lib/libtorch_cpu.so", "torch/include/ATen/ATen.h"];
    let before = in_use.map(|path| file(path).ino());
    // Keeps a file open, as a running linker does.
    let script = fs::File::open(checkout.home().join("torch/lib/libtorch.so")).expect("there");

    let run = output(&mut checkout.cargo_amp(&["setup", "--cuda"]));
    assert_succeeded(&run);
    assert!(
        stderr(&run).contains("fetching the CUDA libraries for the installed libtorch"),
        "{}",
        stderr(&run)
    );
    assert_has_cuda(&checkout);
    assert_eq!(in_use.map(|path| file(path).ino()), before, "the same files");
    let read = std::io::read_to_string(script).expect("still there");
    assert_eq!(read, "INPUT(libtorch_cpu.so)\n", "the open file was not written to");
    assert_eq!(checkout.pip_runs(), CPU_WHEELS + CUDA_WHEELS);
}

#[test]
fn a_libtorch_with_cuda_also_serves_cpus() {
    let checkout = Checkout::new();
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup", "--cuda"])));
    let run = output(&mut checkout.cargo_amp(&["setup", "--cpu"]));
    assert_succeeded(&run);
    assert!(stdout(&run).contains("it includes everything for CPUs"), "{}", stdout(&run));
    assert_eq!(stderr(&run), "");
    assert_eq!(checkout.pip_runs(), CUDA_WHEELS);
    assert_has_cuda(&checkout);
}

#[test]
fn other_commands_accept_either_variant_and_suggest_cuda() {
    let checkout = Checkout::new();
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup", "--cpu"])));
    // The script that replaces cargo exits with 7.
    let run = output(&mut checkout.cargo_amp(&["verify"]));
    assert_eq!((run.status.code(), stderr(&run).as_str()), (Some(7), ""));
    for command in ["verify", "setup"] {
        let run = output(&mut checkout.cargo_amp_with_driver(&[command]));
        assert_eq!(stderr(&run), NOTE, "{command}");
    }
    assert_eq!(checkout.pip_runs(), CPU_WHEELS);

    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup", "--cuda"])));
    for mut command in
        [checkout.cargo_amp(&["verify"]), checkout.cargo_amp_with_driver(&["verify"])]
    {
        assert_eq!(stderr(&output(&mut command)), "");
    }
}

#[test]
fn a_failure_to_add_cuda_leaves_the_old_libtorch() {
    let checkout = Checkout::new();
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup", "--cpu"])));
    let before = checkout.files();
    let mut command = checkout.cargo_amp(&["setup", "--cuda"]);
    let run = output(command.env("FAKE_PIP", "network").env("FAKE_AT", "nvidia-cublas"));
    assert_refused(&run, &["could not reach"]);
    let run = output(checkout.cargo_amp(&["setup", "--cuda"]).env("FAKE_UNPACK", "disk-full"));
    assert_refused(&run, &["the disk is full"]);
    assert_eq!(checkout.files(), before);
    let run = output(&mut checkout.cargo_amp(&["setup", "--cpu"]));
    assert_eq!((run.status.code(), stderr(&run).as_str()), (Some(0), ""));

    // The failed run has kept all wheels, so pip is not run again.
    let fetched = checkout.pip_runs();
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup", "--cuda"])));
    assert_eq!(checkout.pip_runs(), fetched);
    assert_has_cuda(&checkout);
}

#[test]
fn a_fetch_with_cuda_reuses_wheels_of_an_interrupted_fetch_for_cpus() {
    let checkout = Checkout::new();
    let mut command = checkout.cargo_amp(&["setup", "--cpu"]);
    let run = output(command.env("FAKE_PIP", "network").env("FAKE_AT", "nvidia-cuda-runtime"));
    assert_refused(&run, &["could not reach"]);
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup", "--cuda"])));
    let torch = checkout.pip_log().iter().filter(|run| run.ends_with("torch==2.11.0")).count();
    assert_eq!(torch, 1, "{:?}", checkout.pip_log());
    assert_has_cuda(&checkout);
}

#[test]
fn a_folder_unpacked_for_cpus_before_an_interruption_is_not_used_for_cuda() {
    let checkout = Checkout::new();
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup", "--cpu"])));
    fs::create_dir(checkout.partial()).expect("writable");
    fs::rename(checkout.home(), checkout.partial().join("new")).expect("writable");
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup", "--cuda"])));
    assert_has_cuda(&checkout);
}

#[test]
fn an_index_without_cuda_is_detected_before_anything_is_replaced() {
    let checkout = Checkout::new();
    let mut command = checkout.cargo_amp(&["setup", "--cuda"]);
    let run = output(command.env("FAKE_PIP", "cpu-index"));
    assert_refused(&run, &["libtorch_cuda.so is missing", "check pip's configuration"]);
    assert!(!checkout.home().exists());
    // The wheels that this index has are enough for `--cpu`.
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup", "--cpu"])));
    assert!(checkout.is_provisioned());
}

/// Asserts that libtorch contains exactly the CUDA libraries that a program may load.
#[track_caller]
fn assert_has_cuda(checkout: &Checkout) {
    assert!(checkout.is_provisioned());
    let expected = "
        amp-manifest
        nvidia/cu13/lib/libcudart.so.13
        nvidia/cu13/lib/libcupti.so.13
        nvidia/cu13/lib/libcusolver.so.12
        nvidia/cu13/lib/libnvperf_host.so
        nvidia/cu13/lib/libnvrtc.so.13
        nvidia/cublas/lib/libcublas.so.1
        nvidia/cudnn-cu13/lib/libcudnn-cu13.so.1
        nvidia/cufft/lib/libcufft.so.1
        nvidia/cufile/lib/libcufile.so.1
        nvidia/curand/lib/libcurand.so.1
        nvidia/cusparse/lib/libcusparse.so.1
        nvidia/cusparselt-cu13/lib/libcusparselt-cu13.so.1
        nvidia/nccl-cu13/lib/libnccl-cu13.so.1
        nvidia/nvjitlink/lib/libnvjitlink.so.1
        nvidia/nvshmem-cu13/lib/libnvshmem-cu13.so.1
        nvidia/nvtx/lib/libnvtx.so.1
        torch/include/ATen/ATen.h
        torch/include/torch/csrc/api/include/torch/torch.h
        torch/lib/libc10.so
        torch/lib/libc10_cuda.so
        torch/lib/libcaffe2_nvrtc.so
        torch/lib/libgomp.so.1
        torch/lib/libtorch.so
        torch/lib/libtorch_cpu.so
        torch/lib/libtorch_cuda.so
        torch/lib/libtorch_cuda_linalg.so
        torch/lib/libtorch_nvshmem.so
        torch/version.py
    ";
    assert_eq!(checkout.files(), expected.split_whitespace().collect::<Vec<_>>());
    let library = fs::read_to_string(checkout.home().join("torch/lib/libtorch.so"));
    assert_eq!(library.expect("there"), "torch/lib/libtorch.so\n", "the library, not the script");
}
