//! Lists the tensors of a module by name, and moves them to a device and a dtype.

use std::collections::BTreeMap;

use tch::Tensor;

use super::{Visit, Visitor, check};
use crate::{
    Result, ffi,
    parameter::Parameter,
    precision::{Policy, Precision, Region, RegionPlan, is_floating},
};

/// The role of a tensor in its module: parameter or buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A trained tensor.
    Parameter,
    /// A tensor that is saved with the module but not trained.
    Buffer,
}

/// Returns every tensor of the module with its name and role, in order of declaration.
pub fn named_tensors(module: &(impl Visit + ?Sized)) -> Vec<(String, Tensor, Role)> {
    // Names, tensors and roles are the same in every precision, so any precision can be given here.
    let (found, _) = walk(module, Precision::F32True, &BTreeMap::new());
    found.into_iter().map(|found| (found.name, found.tensor, found.role)).collect()
}

/// Returns the parameters of the module, whether they are trained or frozen, but not the buffers. A
/// tied parameter (one tensor with several names) is returned once, under its first name.
pub fn parameters(module: &(impl Visit + ?Sized)) -> Vec<Parameter> {
    let mut seen = std::collections::HashSet::new();
    named_tensors(module)
        .into_iter()
        .filter(|(_, tensor, role)| *role == Role::Parameter && seen.insert(ffi::identity(tensor)))
        .map(|(name, tensor, _)| Parameter { name, tensor })
        .collect()
}

/// Drops the gradient of every parameter, as PyTorch's `zero_grad(set_to_none=True)` does.
/// Afterwards no gradient is defined.
///
/// # Errors
/// When libtorch fails.
pub fn clear_gradients(module: &(impl Visit + ?Sized)) -> Result<()> {
    ffi::clear_grads(parameters(module).iter().map(|parameter| &parameter.tensor))
}

/// Returns the parameters that the model's forward pass itself changes. The trainer restores these
/// parameters when it skips or repeats a step.
pub(crate) fn changed_in_forward(module: &(impl Visit + ?Sized)) -> Vec<Parameter> {
    let (found, _) = walk(module, Precision::F32True, &BTreeMap::new());
    let changed = found.into_iter().filter(|found| found.is_changed_in_forward);
    changed.map(|Found { name, tensor, .. }| Parameter { name, tensor }).collect()
}

/// Returns the parameters that are in precision regions, each with the dtypes (the plan) of its
/// region.
pub(crate) fn parameters_in_regions(
    module: &(impl Visit + ?Sized),
    precision: Precision,
    overrides: &BTreeMap<String, Region>,
) -> Vec<(Parameter, RegionPlan)> {
    let (found, _) = walk(module, precision, overrides);
    let outside = RegionPlan::of(precision);
    let found = found.into_iter();
    let within = found.filter(|found| found.role == Role::Parameter && found.plan != outside);
    within.map(|Found { name, tensor, plan, .. }| (Parameter { name, tensor }, plan)).collect()
}

/// Moves every tensor to the policy's device. Casts every floating-point tensor to the dtype of the
/// innermost precision region around it or, outside of precision regions, to the policy's dtype.
/// `overrides` contains precision regions by the paths of modules; they replace the regions that
/// the structs declare. Each tensor is replaced in place, so that its shallow clones are moved,
/// too.
///
/// # Errors
/// - When no module has the path of an override.
/// - When two tensors have the same name, or a tensor with several names has two dtypes or two
///   roles.
/// - When a parameter has an integer dtype, or the device has too little memory.
pub fn place(
    module: &(impl Visit + ?Sized),
    policy: Policy,
    overrides: &BTreeMap<String, Region>,
) -> Result<()> {
    let (found, modules) = walk(module, policy.precision, overrides);
    check::overrides_name_modules(overrides, &modules)?;
    check::tensors_are_sound(&found)?;
    for Found { mut tensor, plan, .. } in found {
        let kind = if is_floating(tensor.kind()) { plan.storage } else { tensor.kind() };
        if tensor.kind() != kind || tensor.device() != policy.device {
            let moved = tch::no_grad(|| tensor.f_to_device_(policy.device, kind, false, true))?;
            tensor.f_set_data(&moved)?;
        }
    }
    Ok(())
}

/// A tensor of a module, with its path.
pub(super) struct Found {
    pub(super) name: String,
    pub(super) tensor: Tensor,
    pub(super) role: Role,
    pub(super) plan: RegionPlan,
    pub(super) is_changed_in_forward: bool,
}

/// Returns the tensors of a module, and the paths of the modules within it.
fn walk(
    module: &(impl Visit + ?Sized),
    precision: Precision,
    overrides: &BTreeMap<String, Region>,
) -> (Vec<Found>, Vec<String>) {
    let plan = RegionPlan::of(precision);
    let (scopes, found, modules) = (Vec::new(), Vec::new(), Vec::new());
    let mut walk = Walk { precision, overrides, path: String::new(), plan, scopes, found, modules };
    module.visit(&mut walk);
    (walk.found, walk.modules)
}

struct Walk<'a> {
    precision: Precision,
    overrides: &'a BTreeMap<String, Region>,
    path: String,
    plan: RegionPlan,
    /// One entry for each module whose visit has begun and not ended: the length of the path
    /// without the module's name, and the dtypes (the plan) of the surrounding module.
    scopes: Vec<(usize, RegionPlan)>,
    found: Vec<Found>,
    /// The paths of all modules. Collected only if there are overrides, to check that a module
    /// exists for each of them.
    modules: Vec<String>,
}

impl Visitor for Walk<'_> {
    fn enter(&mut self, name: &str, region: Option<Region>) {
        let parent = self.path.len();
        if parent > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        self.scopes.push((parent, self.plan));
        if !self.overrides.is_empty() {
            self.modules.push(self.path.clone());
        }
        if let Some(region) = self.overrides.get(&self.path).copied().or(region) {
            self.plan = self.plan.enter(region, self.precision);
        }
    }

    fn leave(&mut self) {
        if let Some((parent, plan)) = self.scopes.pop() {
            self.path.truncate(parent);
            self.plan = plan;
        }
    }

    fn tensor(&mut self, name: &str, tensor: &Tensor, role: Role) {
        let name = match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        };
        let tensor = tensor.shallow_clone();
        let (plan, is_changed_in_forward) = (self.plan, false);
        self.found.push(Found { name, tensor, role, plan, is_changed_in_forward });
    }

    fn changed_in_forward(&mut self, name: &str, tensor: &Tensor) {
        self.tensor(name, tensor, Role::Parameter);
        if let Some(found) = self.found.last_mut() {
            found.is_changed_in_forward = true;
        }
    }
}
