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
    /// There is no failure: the check passes.
    Passes,
    /// Training is not deterministic. Repeating the check with the same seeds gave another value,
    /// and the difference is at least as large as the distance of the first value from the limit.
    Determinism {
        /// The outcome of the repetition.
        again: Outcome,
    },
    /// The environment has changed: 32-true gives other values than in the reference.
    Environment,
    /// Fused layers give other values than the same layers one by one.
    Fusion {
        /// The groups of fused layers whose difference exceeds its bound.
        groups: Vec<Group>,
    },
    /// None of the other causes applies, so the precision is the cause.
    Precision,
}

/// The result of a diagnosis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The version of this format. A new version means that a field has changed its meaning.
    pub schema: String,
    /// A description of the value that the check measures.
    pub check: String,
    /// The cause.
    pub attribution: Attribution,
    /// The result of the check on the unchanged model.
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
    /// Whether the search tested for each module that the check fails without it.
    pub is_one_minimal: bool,
    /// How many times the search ran the check.
    pub tests: usize,
    /// The result of the check with these modules in FP32.
    pub after: Outcome,
    /// The fields of the model's struct that contain the modules in `modules`.
    pub fields: Vec<String>,
    /// The result of the check with these whole fields in FP32, as the attribute
    /// `#[precision(fp32)]` sets them.
    pub with_fields: Outcome,
    /// The cost of these modules in FP32; null if the check does not train.
    pub cost: Option<Cost>,
}

/// The cost of FP32 modules: a run with these modules in FP32 compared with a run without.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// The training time, divided by that of the run without FP32 modules.
    pub train_seconds_ratio: f64,
    /// The peak memory, divided by that of the run without FP32 modules.
    pub peak_memory_ratio: f64,
}

/// What the diagnosis knows about the model before it runs the check.
pub struct Scope<'a> {
    /// The precisions of single modules that apply to every run of the check, for example from a
    /// policy file.
    pub overrides: &'a Overrides,
    /// The paths of the layers that compute something; the search begins with them.
    pub layers: Vec<String>,
    /// The paths of all modules, for a second search if FP32 in `layers` is not enough.
    pub modules: Vec<String>,
    /// Whether 32-true gives other values now than in the reference, a file of an earlier run.
    /// `None` if the user gave no reference.
    pub baseline_moved: Option<bool>,
    /// The groups of layers that run as one fused kernel, compared with the same layers one by one.
    pub groups: Vec<Group>,
    /// The path of a layer that an earlier check suspects. Before the search, it is tried as the
    /// only module in FP32. `None` if no layer is suspected.
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
    // Wrong fused kernels are reported first, for two reasons. A check that measures layers one by
    // one passes even if their fused kernel is wrong. And an FP32 region in a group prevents the
    // fusion, so the search would find "fixes" that only hide the fault.
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

/// Runs the check with the suspected layer as the only module in FP32. If it passes, no search is
/// needed.
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
    // The check fails without FP32 modules, so a set of one module is minimal.
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

/// Returns the precision regions with an additional FP32 region for each of `modules`.
pub fn fp32(overrides: &Overrides, modules: &[String]) -> Overrides {
    let mut all = overrides.clone();
    all.extend(modules.iter().map(|path| (path.clone(), Region::Fp32)));
    all
}

/// Formats for each field the lines that the user pastes into the model's struct: the attribute
/// `#[precision(fp32)]` and the field's name.
pub fn attribute_to_paste(fields: &[String]) -> String {
    let lines = fields.iter().map(|field| format!("    #[precision(fp32)]\n    {field}: …"));
    lines.collect::<Vec<_>>().join("\n\n")
}

/// Returns the name of the field of the model's struct that contains the module.
fn field(path: &str) -> &str {
    path.split_once('.').map_or(path, |(field, _)| field)
}
