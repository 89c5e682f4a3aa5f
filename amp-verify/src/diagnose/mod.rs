//! Finds out why a precision fails a check, and which modules of the model must stay in FP32.

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

/// Why a precision failed a check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Attribution {
    /// The precision passes the check.
    Passes,
    /// Training is not deterministic, which may explain the failure. A second run of the check with
    /// the same seeds gave another value. The two values differ by at least as much as the first
    /// one exceeded the limit.
    Determinism {
        /// The result of the repeated check.
        again: Outcome,
    },
    /// The environment has changed: 32-true gives other results than those in the reference file.
    Environment,
    /// Fused layers give other results than the same layers run one at a time.
    Fusion {
        /// The groups of fused layers whose results differ more than accepted from those of the
        /// separate layers.
        groups: Vec<Group>,
    },
    /// The precision is the cause, because none of the other causes applies.
    Precision,
}

/// The result of a diagnosis: the cause of the failure, and the modules that must stay in FP32.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The version of this format. The version changes if a field gets another meaning.
    pub schema: String,
    /// What the check measures, in words.
    pub check: String,
    /// Why the precision failed the check.
    pub attribution: Attribution,
    /// The result of the check before the search sets modules to FP32.
    pub before: Outcome,
    /// The modules that must stay in FP32. Null if the precision is not the cause, or if the check
    /// fails even with all modules in FP32.
    pub fix: Option<Fix>,
}

/// The modules that must stay in FP32, and the results with these modules in FP32.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fix {
    /// The paths of the modules. The check passes if all of them stay in FP32. If `is_one_minimal`
    /// is true, the check fails if any one of them does not stay in FP32.
    pub modules: Vec<String>,
    /// Whether the search has shown that each of the modules is necessary: without any one of them
    /// in FP32, the check fails.
    pub is_one_minimal: bool,
    /// How many sets of modules the search tried.
    pub tests: usize,
    /// The result of the check with the modules in `modules` in FP32.
    pub after: Outcome,
    /// The fields of the model's struct that contain the modules in `modules`.
    pub fields: Vec<String>,
    /// The result of the check with all of `fields` in FP32, which is what the attribute
    /// `#[precision(fp32)]` on these fields would do.
    pub with_fields: Outcome,
    /// How much time and memory these modules cost in FP32. Null if the check does not train.
    pub cost: Option<Cost>,
}

/// The time and the memory of a run with certain modules in FP32, compared with a run without them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// The training time, divided by the training time of the run without FP32 modules.
    pub train_seconds_ratio: f64,
    /// The peak memory, divided by the peak memory of the run without FP32 modules.
    pub peak_memory_ratio: f64,
}

/// The inputs of [`diagnose`]: facts about the model that were found before the diagnosis.
pub struct Scope<'a> {
    /// The modules' precisions in every run of the check, for example from a policy file. The
    /// search adds FP32 modules to them.
    pub overrides: &'a Overrides,
    /// The paths of the layers: modules that compute something themselves, and do not only call
    /// other modules. The search first tries to find enough modules among these layers.
    pub layers: Vec<String>,
    /// The paths of all modules. The search uses them if the check fails even with all of `layers`
    /// in FP32.
    pub modules: Vec<String>,
    /// Whether 32-true gives other results than those in the reference file of an earlier run.
    /// `None` if the user gave no reference file.
    pub baseline_moved: Option<bool>,
    /// The groups of layers that run as one fused kernel, each with the difference between its
    /// results and those of the same layers run one at a time.
    pub groups: Vec<Group>,
    /// The path of a layer that an earlier check found suspicious. Before the search, this layer is
    /// tried as the only module in FP32. `None` if no layer is suspicious.
    pub suspect: Option<String>,
}

/// Runs the check of the precision and determines why it fails. If the precision is the cause,
/// searches for the modules that must stay in FP32.
///
/// # Errors
/// When the check cannot be run.
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
    // Wrong fused kernels are reported first, because the other checks miss them. A check that
    // measures each layer separately passes even if the fused kernel is wrong. And a layer in FP32
    // prevents the fusion of its group, so the search would find "fixes" that only hide the fault.
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

/// Runs the check with the suspected layer as the only module in FP32. If the check passes, returns
/// this layer as the result, so that no search is needed.
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
    // No smaller set passes: the check fails if no module is in FP32.
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

/// Returns the precisions of single modules in `overrides`, with FP32 added for each of `modules`.
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
