//! Formats the report of `cargo amp doctor` on the machine.

use amp_core::hardware::{CudaDevice, Report};
use comfy_table::{Table, presets::NOTHING};

use crate::text::counted;

/// Formats the properties of the machine, one per line. The last line is the recommended precision.
pub fn doctor(report: &Report) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    let cpu = &report.cpu;
    table.add_row(["libtorch", &report.libtorch]);
    table.add_row(["cpu", &cpu.name]);
    table.add_row(["  kernels", &format!("{}, {}", cpu.kernels, counted(cpu.threads, "thread"))]);
    table.add_row(["  instructions", &cpu.features.join(" ")]);
    table.add_row(["cuda library", &report.cuda_library.to_string()]);
    match &report.cuda_driver {
        Some(version) => table.add_row(["cuda driver", &format!("up to CUDA {version}")]),
        None => table.add_row(["cuda", "there is no device that libtorch can use"]),
    };
    for device in &report.devices {
        rows(&mut table, device);
    }
    let recommended = &report.recommended;
    table.add_row([
        "recommended".to_owned(),
        format!("{}: {}", recommended.precision, recommended.reason),
    ]);
    let lines = table.lines().map(|line| line.trim_end().to_owned() + "\n");
    lines.collect()
}

fn rows(table: &mut Table, device: &CudaDevice) {
    let (major, minor) = device.capability;
    table.add_row([format!("cuda:{}", device.index), device.name.clone()]);
    table.add_row(["  capability".to_owned(), format!("{major}.{minor}")]);
    let gib = device.memory as f64 / f64::from(1 << 30);
    let size = format!("{gib:.1} GiB, {} multiprocessors", device.multiprocessors);
    table.add_row(["  memory".to_owned(), size]);
    let parts = [
        ("tensor cores", device.tensor_cores),
        ("bf16", device.bf16),
        ("TF32", device.tf32),
        ("FP8", device.fp8),
    ];
    let parts = parts.map(|(name, has)| format!("{name} {}", if has { "yes" } else { "no" }));
    table.add_row(["  matrix units".to_owned(), parts.join(", ")]);
}
