//! Measures the speed of matrix products on a device.

use std::time::Instant;

use amp_core::{
    Result,
    tch::{Cuda, Device, Kind, Tensor, no_grad},
};

/// Returns the number of rows and of columns of each matrix. It is so large that one product keeps
/// any device busy.
fn side(device: Device) -> i64 {
    if device.is_cuda() { 8192 } else { 1024 }
}

/// Multiplies square bf16 matrices several times. Returns the number of floating-point operations
/// per second.
///
/// # Errors
/// When there is not enough memory.
pub(super) fn bf16_matrix_rate(device: Device) -> Result<f64> {
    let (side, products) = (side(device), if device.is_cuda() { 32 } else { 2 });
    let matrix = || Tensor::f_randn([side, side], (Kind::BFloat16, device));
    let (a, b, out) = (matrix()?, matrix()?, matrix()?);
    let run = |count: i64| -> Result<f64> {
        let start = Instant::now();
        no_grad(|| (0..count).try_for_each(|_| a.f_matmul_out(&out, &b).map(drop)))?;
        if let Device::Cuda(index) = device {
            Cuda::synchronize(index as i64);
        }
        Ok(start.elapsed().as_secs_f64())
    };
    run(products / 2)?;
    let seconds = run(products)?;
    Ok(2.0 * (side as f64).powi(3) * products as f64 / seconds)
}
