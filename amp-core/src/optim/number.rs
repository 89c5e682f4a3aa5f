//! Numbers of an optimizer step, which are on the host or on the device.

use tch::{Kind, TchError, Tensor};

use crate::{Result, ffi};

/// A number of an optimizer step in f64, such as a rate, a count of steps, or a norm. If the step
/// may be captured in a CUDA graph, the number is on the parameter's CUDA device, because a graph
/// cannot wait for the host. Otherwise the number is on the host. The operations of this type work
/// in the same way on host and device.
#[derive(Debug)]
pub struct Number(Kept);

#[derive(Debug)]
enum Kept {
    Host(f64),
    /// A tensor with zero dimensions, on a CUDA device.
    Device(Tensor),
}

impl From<f64> for Number {
    fn from(number: f64) -> Self {
        Self(Kept::Host(number))
    }
}

impl From<&Number> for Number {
    fn from(number: &Number) -> Self {
        match &number.0 {
            Kept::Host(number) => Self(Kept::Host(*number)),
            Kept::Device(tensor) => Self(Kept::Device(tensor.shallow_clone())),
        }
    }
}

/// The implementations of an operation on two numbers, one for each combination of the places (host
/// or device) of the two numbers.
struct Binary {
    host: fn(f64, f64) -> f64,
    by_host: fn(&Tensor, f64) -> std::result::Result<Tensor, TchError>,
    of_host: fn(f64, &Tensor) -> std::result::Result<Tensor, TchError>,
    device: fn(&Tensor, &Tensor) -> std::result::Result<Tensor, TchError>,
}

impl Number {
    /// Returns the value of a tensor with one element. If `stays` is true, the value stays on the
    /// tensor's device. Otherwise the host waits for the value and reads it.
    pub(super) fn of(tensor: &Tensor, stays: bool) -> Result<Self> {
        Ok(Self(match stays {
            true => {
                Kept::Device(tensor.f_detach()?.f_to_kind(Kind::Double)?.f_reshape([0_i64; 0])?)
            }
            false => Kept::Host(tensor.f_double_value(&[])?),
        }))
    }

    /// Returns the number at the index `at` of a list of f64 values on the device.
    pub(super) fn of_element(list: &Tensor, at: i64) -> Self {
        Self(Kept::Device(list.select(0, at)))
    }

    fn with(&self, other: impl Into<Self>, operation: &Binary) -> Result<Self> {
        Ok(Self(match (&self.0, other.into().0) {
            (Kept::Host(one), Kept::Host(other)) => Kept::Host((operation.host)(*one, other)),
            (Kept::Device(one), Kept::Host(other)) => {
                Kept::Device((operation.by_host)(one, other)?)
            }
            (Kept::Host(one), Kept::Device(other)) => {
                Kept::Device((operation.of_host)(*one, &other)?)
            }
            (Kept::Device(one), Kept::Device(other)) => {
                Kept::Device((operation.device)(one, &other)?)
            }
        }))
    }

    /// Returns the sum of this number and `other`.
    ///
    /// # Errors
    /// When a tensor operation fails, as for all methods of this type.
    pub fn plus(&self, other: impl Into<Self>) -> Result<Self> {
        self.with(
            other,
            &Binary {
                host: |one, other| one + other,
                by_host: |one, other| one.f_add_scalar(other),
                of_host: |one, other| other.f_add_scalar(one),
                device: Tensor::f_add,
            },
        )
    }

    /// Returns this number minus `other`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn minus(&self, other: impl Into<Self>) -> Result<Self> {
        self.with(
            other,
            &Binary {
                host: |one, other| one - other,
                by_host: |one, other| one.f_sub_scalar(other),
                of_host: |one, other| other.f_neg()?.f_add_scalar(one),
                device: Tensor::f_sub,
            },
        )
    }

    /// Returns the product of this number and `other`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn times(&self, other: impl Into<Self>) -> Result<Self> {
        self.with(
            other,
            &Binary {
                host: |one, other| one * other,
                by_host: |one, other| one.f_mul_scalar(other),
                of_host: |one, other| other.f_mul_scalar(one),
                device: Tensor::f_mul,
            },
        )
    }

    /// Returns this number divided by `other`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn over(&self, other: impl Into<Self>) -> Result<Self> {
        self.with(
            other,
            &Binary {
                host: |one, other| one / other,
                by_host: |one, other| one.f_div_scalar(other),
                of_host: |one, other| other.f_reciprocal()?.f_mul_scalar(one),
                device: Tensor::f_div,
            },
        )
    }

    /// Returns this number to the power of `power`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn to_the(&self, power: impl Into<Self>) -> Result<Self> {
        self.with(
            power,
            &Binary {
                host: f64::powf,
                by_host: |one, other| one.f_pow_tensor_scalar(other),
                of_host: |one, other| Tensor::f_pow_scalar(one, other),
                device: Tensor::f_pow,
            },
        )
    }

    /// Returns the smaller of this number and `other`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn at_most(&self, other: impl Into<Self>) -> Result<Self> {
        self.with(
            other,
            &Binary {
                host: f64::min,
                by_host: |one, other| one.f_clamp_max(other),
                of_host: |one, other| other.f_clamp_max(one),
                device: Tensor::f_minimum,
            },
        )
    }

    /// Returns the larger of this number and `other`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn at_least(&self, other: impl Into<Self>) -> Result<Self> {
        self.with(
            other,
            &Binary {
                host: f64::max,
                by_host: |one, other| one.f_clamp_min(other),
                of_host: |one, other| other.f_clamp_min(one),
                device: Tensor::f_maximum,
            },
        )
    }

    /// Returns this number if it is above 0, and otherwise `other`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn if_positive_or(&self, other: f64) -> Result<Self> {
        Ok(Self(match &self.0 {
            Kept::Host(number) => Kept::Host(if *number > 0.0 { *number } else { other }),
            Kept::Device(number) => {
                Kept::Device(number.f_where_scalarother(&number.f_gt(0.0)?, other)?)
            }
        }))
    }

    /// Returns a new tensor, in which each element of `tensor` is multiplied by this number.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn scaled(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(match &self.0 {
            Kept::Host(number) => tensor.f_mul_scalar(*number)?,
            Kept::Device(number) => tensor.f_mul(&number.f_to_kind(tensor.kind())?)?,
        })
    }

    /// Multiplies each element of `tensor` by this number, in place.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn scale(&self, tensor: &Tensor) -> Result<()> {
        let mut tensor = tensor.shallow_clone();
        let _ = match &self.0 {
            Kept::Host(number) => tensor.f_mul_scalar_(*number)?,
            Kept::Device(number) => {
                let number = number.f_to_kind(tensor.kind())?;
                tensor.f_mul_(&number)?
            }
        };
        Ok(())
    }

    /// Adds `update`, multiplied by this number, to `tensor` in place. The two tensors may have
    /// different dtypes.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn add(&self, tensor: &Tensor, update: &Tensor) -> Result<()> {
        match &self.0 {
            Kept::Host(number) => ffi::add_scaled(tensor, update, *number),
            Kept::Device(number) => {
                let kind = tensor.kind();
                let (number, update) = (number.f_to_kind(kind)?, update.f_to_kind(kind)?);
                let _ = tensor.shallow_clone().f_addcmul_(&update, &number)?;
                Ok(())
            }
        }
    }

    /// Changes `tensor` in place to tensor + f·(to − tensor), where f is this number. `to` has the
    /// same dtype as `tensor`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn lerp(&self, tensor: &Tensor, to: &Tensor) -> Result<()> {
        let mut tensor = tensor.shallow_clone();
        let _ = match &self.0 {
            Kept::Host(number) => tensor.f_lerp_(to, *number)?,
            Kept::Device(number) => {
                let number = number.f_to_kind(tensor.kind())?;
                tensor.f_lerp_tensor_(to, &number)?
            }
        };
        Ok(())
    }
}
