//! Adafactor (torch/optim/_adafactor.py; Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory
//! Cost").

use tch::{Kind, Tensor};

use super::{
    Algorithm, Number, ParameterStep, Rates, Slot, StepTensors, algorithm::stepped_by_rule, require,
};
use crate::{Result, parameter::Parameter};

/// Adafactor scales updates as Adam does, but needs less memory. If a parameter has at least two
/// dimensions, the second moment is stored as the product of a column and a row. For an n × m
/// matrix these are n + m numbers instead of n·m. There is no first moment. The defaults are those
/// of torch.optim.Adafactor. In step t, with gradient g, weight w, the numbers ε₁ and ε₂ of
/// [`eps`](Self::eps), and rms for the root mean square:
///
/// - β = t^[`beta2_decay`](Self::beta2_decay).
/// - R has one element for each row, a running mean: R ← R + β(mean of g² in the row − R).
/// - C has one element for each column, the running mean of the mean of g² in the column.
/// - V = RC / max(mean of R, ε₁), and U = g/√max(V, ε₁²).
/// - α = max(ε₂, rms(w))·min(lr, 1/√t).
/// - w ← w − lr·weight_decay·w − α·U / max(1, rms(U)/d).
///
/// ```
/// use amp_core::optim::{Adafactor, OptimizerConfig};
/// let config = OptimizerConfig::new(Adafactor { lr: 1e-2, ..Default::default() });
/// ```
///
/// 16-bit weights are updated in f32. The column and the row, which are small, are stored in f32.
/// The step can be captured in a CUDA graph.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Adafactor {
    /// The highest relative learning rate: each step multiplies it by the root mean square of the
    /// parameter.
    pub lr: f64,
    /// The exponent of t in β = t^`beta2_decay`, at most 0. β is the weight of the newest squared
    /// gradient in the running mean.
    pub beta2_decay: f64,
    /// The numbers ε₁ and ε₂ of the formulas. If ε₁ is `None`, it is the machine epsilon of the
    /// dtype in which the parameter is updated.
    pub eps: (Option<f64>, f64),
    /// The largest root mean square of U in the formulas: if it is larger, U is scaled down. At
    /// least 1.
    pub d: f64,
    /// The weight decay: each step subtracts lr·weight_decay·weight from the weight.
    pub weight_decay: f64,
}

impl Default for Adafactor {
    fn default() -> Self {
        Self { lr: 1e-2, beta2_decay: -0.8, eps: (None, 1e-3), d: 1.0, weight_decay: 0.0 }
    }
}

const STEP: &str = "step";
const ROW: &str = "row_var";
const COLUMN: &str = "col_var";
const VARIANCE: &str = "variance";

impl Algorithm for Adafactor {
    const NAME: &'static str = "Adafactor";

    fn check(&self) -> Result<()> {
        require(self.lr >= 0.0, "lr", self.lr, "at least 0")?;
        require(self.beta2_decay <= 0.0, "beta2_decay", self.beta2_decay, "at most 0")?;
        let (eps1, eps2) = (self.eps.0.unwrap_or_default(), self.eps.1);
        require(eps1 >= 0.0, "eps.0", eps1, "at least 0")?;
        require(eps2 >= 0.0, "eps.1", eps2, "at least 0")?;
        require(self.d >= 1.0, "d", self.d, "at least 1")?;
        require(self.weight_decay >= 0.0, "weight_decay", self.weight_decay, "at least 0")
    }

    fn slots(&self, parameter: &Parameter) -> Result<Vec<Slot>> {
        let shape = parameter.tensor.size();
        let count = Slot::count(STEP);
        if shape.len() < 2 {
            return Ok(vec![count, Slot::of_squares(VARIANCE)]);
        }
        let (mut row, mut column) = (shape.clone(), shape);
        let last = row.len() - 1;
        (row[last], column[last - 1]) = (1, 1);
        Ok(vec![count, Slot::of_shape(ROW, row), Slot::of_shape(COLUMN, column)])
    }

    fn rates(&self) -> Rates {
        Rates { lr: self.lr, momentum: None }
    }

    fn set_rates(&mut self, rates: Rates) {
        self.lr = rates.lr;
    }

    stepped_by_rule!();
}

impl Adafactor {
    fn rule(&self, one: &ParameterStep<'_>) -> Result<()> {
        let (param, grad, lr) = (one.param(), one.grad(), one.lr());
        let root = (param.numel() as f64).sqrt();
        let eps1 = self.eps.0.unwrap_or(match param.kind() {
            Kind::Double => f64::EPSILON,
            _ => f64::from(f32::EPSILON),
        });
        let step = one.count(STEP)?;
        let share = step.to_the(self.beta2_decay)?;
        let relative = lr.at_most(Number::from(1.0).over(step.to_the(0.5)?)?)?;
        let size = one.norm(param)?.over(root)?.at_least(self.eps.1)?;
        let alpha = size.times(relative)?;
        if self.weight_decay != 0.0 {
            Number::from(1.0).minus(lr.times(self.weight_decay)?)?.scale(param)?;
        }
        let mut variance = match grad.dim() {
            0 | 1 => {
                let variance = one.slot(VARIANCE)?;
                share.lerp(variance, &grad.f_square()?)?;
                variance.f_detach_copy()?
            }
            _ => factored(one, &share, eps1)?,
        };
        let update = variance.f_clamp_min_(eps1 * eps1)?.f_rsqrt_()?.f_mul_(grad)?;
        let largest = one.norm(&update)?.over(root * self.d)?.at_least(1.0)?;
        alpha.times(-1.0)?.over(largest)?.add(param, &update)
    }
}

/// Updates the running means of the squared gradient of each row and of each column. Returns the
/// second moment that is computed from these means.
fn factored(one: &ParameterStep<'_>, share: &Number, eps1: f64) -> Result<Tensor> {
    let (row, column, grad) = (one.slot(ROW)?, one.slot(COLUMN)?, one.grad());
    for (kept, dim) in [(row, -1_i64), (column, -2)] {
        let norm = grad.f_norm_scalaropt_dim(2.0, [dim].as_slice(), true)?;
        let count = grad.size()[(grad.dim() as i64 + dim) as usize];
        share.lerp(kept, &norm.f_square()?.f_div_scalar(count)?)?;
    }
    let mean = row.f_mean_dim([-2_i64].as_slice(), true, row.kind())?.f_clamp_min(eps1)?;
    Ok(row.f_matmul(column)?.f_div(&mean)?)
}
