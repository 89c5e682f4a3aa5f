//! Finds the cause of a failed check, and the modules that must stay in FP32.

mod args;
mod checks;
mod ddmin;
mod policy;
mod reference;

pub use args::{DiagnoseArgs, Search};
pub use checks::{Check, LayerError, MetricLoss, Outcome};
pub use ddmin::{Minimal, ddmin};
pub use policy::{Overrides, PolicyFile};

use amp_core::{Result, precision::Region};
use serde::{Deserialize, Serialize};

use crate::layers::Group;

/// The cause of a check's failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Attribution {
    /// The check passes.
    Passes,
    /// A repetition with the same seed gave another figure. The two figures differ by more than the
    /// first one's distance from the limit.
    Determinism {
        /// The second figure.
        again: Outcome,
    },
    /// 32-true itself differs from its reference.
    Environment,
    /// Fused layers give other values than the same layers one by one.
    Fusion {
        /// The groups that exceed their bounds.
        groups: Vec<Group>,
    },
    /// Only the precision differs.
    Precision,
}

/// The diagnosis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The version of this format; a changed meaning of a field changes it.
    pub schema: String,
    /// The name of the check's figure.
    pub check: String,
    /// The cause.
    pub attribution: Attribution,
    /// The result of the check without changes.
    pub before: Outcome,
    /// The modules that must stay in FP32; null if the precision is not the cause, or if FP32 in all
    /// modules does not help.
    pub fix: Option<Fix>,
}

/// A set of modules that must stay in FP32.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fix {
    /// The paths of the modules. The check passes if they stay in FP32, and fails if any one of
    /// them does not.
    pub modules: Vec<String>,
    /// Whether the search verified this for each module.
    pub is_one_minimal: bool,
    /// The number of runs of the check.
    pub tests: usize,
    /// The result of the check with these modules in FP32.
    pub after: Outcome,
    /// The model's fields that contain the modules in `modules`.
    pub fields: Vec<String>,
    /// The result of the check with these whole fields in FP32, as the attribute
    /// `#[precision(fp32)]` sets them.
    pub with_fields: Outcome,
    /// The cost of these modules in FP32; null if the check does not train.
    pub cost: Option<Cost>,
}

/// The cost of FP32 modules: a run with them compared with a run without them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Training time, relative to the run without.
    pub train_seconds_ratio: f64,
    /// Peak memory, relative to the run without.
    pub peak_memory_ratio: f64,
}

/// The input of the search.
pub struct Scope<'a> {
    /// Precision regions that apply to every run of the check.
    pub overrides: &'a Overrides,
    /// The paths of the layers that compute something; the search begins with them.
    pub layers: Vec<String>,
    /// The paths of all modules, for a second search if FP32 in `layers` is not enough.
    pub modules: Vec<String>,
    /// Whether 32-true differs from its reference; `None` if there is no reference.
    pub baseline_moved: Option<bool>,
    /// The groups of layers that are fused.
    pub groups: Vec<Group>,
    /// The layer with the largest error of its own. The search tries this layer first.
    pub suspect: Option<String>,
}

/// Runs the check and determines the cause of a failure. If the precision is the cause, searches
/// for the modules that must stay in FP32.
///
/// # Errors
/// When the check fails to run.
pub fn diagnose(check: &mut dyn Check, scope: &Scope<'_>) -> Result<Diagnosis> {
    let before = check.run(scope.overrides)?;
    let attribution = attribute(check, scope, before)?;
    let mut fix = None;
    if attribution == Attribution::Precision {
        if let Some(suspect) = &scope.suspect {
            fix = alone(check, scope, suspect)?;
        }
        if fix.is_none() {
            fix = search(check, scope, &scope.layers)?;
        }
        if fix.is_none() {
            fix = search(check, scope, &scope.modules)?;
        }
    }
    let (schema, check) = ("amp-diagnosis/3".into(), check.describe());
    Ok(Diagnosis { schema, check, attribution, before, fix })
}

fn attribute(check: &mut dyn Check, scope: &Scope<'_>, before: Outcome) -> Result<Attribution> {
    // A check that measures layers one by one passes even if their fused kernel is wrong. An FP32
    // region in a group prevents the fusion: it would hide the fault and look like a fix.
    let groups: Vec<Group> = scope.groups.iter().filter(|group| group.is_beyond).cloned().collect();
    if !groups.is_empty() {
        return Ok(Attribution::Fusion { groups });
    }
    if before.passes() {
        return Ok(Attribution::Passes);
    }
    if scope.baseline_moved == Some(true) {
        return Ok(Attribution::Environment);
    }
    let again = check.run(scope.overrides)?;
    let moved = match (before.figure, again.figure) {
        (Some(first), Some(second)) => (first - second).abs() >= first - before.limit,
        (first, second) => first != second,
    };
    Ok(if moved { Attribution::Determinism { again } } else { Attribution::Precision })
}

/// Tries the suspect as the only module in FP32: one run in place of a search.
fn alone(check: &mut dyn Check, scope: &Scope<'_>, suspect: &str) -> Result<Option<Fix>> {
    let modules = vec![suspect.to_owned()];
    let after = check.run(&fp32(scope.overrides, &modules))?;
    if !after.passes() {
        return Ok(None);
    }
    let fields = vec![field(suspect).to_owned()];
    let with_fields = match fields == modules {
        true => after,
        false => check.run(&fp32(scope.overrides, &fields))?,
    };
    // The check failed without this module, so the set is minimal.
    Ok(Some(Fix {
        modules,
        is_one_minimal: true,
        tests: 1,
        after,
        fields,
        with_fields,
        cost: None,
    }))
}

fn search(check: &mut dyn Check, scope: &Scope<'_>, modules: &[String]) -> Result<Option<Fix>> {
    let mut ask = |modules: &[String]| check.run(&fp32(scope.overrides, modules));
    let Some(found) = ddmin(modules, |modules| Ok(ask(modules)?.passes()))? else {
        return Ok(None);
    };
    let mut fields: Vec<String> = found.set.iter().map(|path| field(path).to_owned()).collect();
    fields.dedup();
    Ok(Some(Fix {
        after: ask(&found.set)?,
        with_fields: ask(&fields)?,
        modules: found.set,
        is_one_minimal: found.is_one_minimal,
        tests: found.tests,
        fields,
        cost: None,
    }))
}

/// Adds an FP32 region for each of the modules.
pub fn fp32(overrides: &Overrides, modules: &[String]) -> Overrides {
    let mut all = overrides.clone();
    all.extend(modules.iter().map(|path| (path.clone(), Region::Fp32)));
    all
}

/// Formats the attribute and the field's name, for each field.
pub fn attribute_to_paste(fields: &[String]) -> String {
    let lines = fields.iter().map(|field| format!("    #[precision(fp32)]\n    {field}: …"));
    lines.collect::<Vec<_>>().join("\n\n")
}

/// Returns the struct's field that contains the module.
fn field(path: &str) -> &str {
    path.split_once('.').map_or(path, |(field, _)| field)
}
