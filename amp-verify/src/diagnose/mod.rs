//! On a failed check: what the failure is due to, and which modules must stay FP32.

mod args;
mod checks;
mod ddmin;
mod policy;
mod reference;

pub use args::{DiagnoseArgs, Search};
pub use checks::{Check, LayerError, MetricLoss, Outcome};
pub use ddmin::{Minimal, ddmin};
pub use policy::{Islands, PolicyFile};

use amp_core::{Result, precision::Region};
use serde::{Deserialize, Serialize};

/// What a check's failure is due to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Attribution {
    /// It does not fail.
    Passes,
    /// The same seed gave another figure, further off than the check was failed by.
    Determinism {
        /// The second figure.
        again: Outcome,
    },
    /// 32-true itself is not what it was.
    Environment,
    /// Only the precision moved.
    Precision,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The form of this object; a change of meaning changes it.
    pub schema: String,
    /// What the check's figure is.
    pub check: String,
    /// What the failure is due to.
    pub attribution: Attribution,
    /// The check as things stand.
    pub before: Outcome,
    /// The modules that must stay FP32; null where the precision is not to blame, or FP32 in all
    /// of them does not help.
    pub island: Option<Island>,
}

/// Modules that must stay FP32.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Island {
    /// Their paths: the check passes with them, and fails again without any one of them.
    pub modules: Vec<String>,
    /// Whether that was verified for each.
    pub is_one_minimal: bool,
    /// How often the check was asked.
    pub tests: usize,
    /// The check with them.
    pub after: Outcome,
    /// The model's fields they are in.
    pub fields: Vec<String>,
    /// The check with these fields whole, as the attribute has them.
    pub with_fields: Outcome,
    /// What these modules cost; null where the check does not train.
    pub cost: Option<Cost>,
}

/// A run with the island against one without.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Training time over that without.
    pub train_seconds_ratio: f64,
    /// Peak memory over that without.
    pub peak_memory_ratio: f64,
}

/// What to search, besides the check.
pub struct Scope<'a> {
    /// Regions that hold anyway.
    pub islands: &'a Islands,
    /// Modules to choose from: those that compute.
    pub layers: Vec<String>,
    /// All modules, tried where FP32 in `layers` is not enough.
    pub modules: Vec<String>,
    /// Whether 32-true is not what it was; `None` where nobody knows.
    pub baseline_moved: Option<bool>,
}

/// Asks the check, tells what a failure is due to and, where it is the precision, finds the modules
/// that must stay FP32.
///
/// # Errors
/// The check's.
pub fn diagnose(check: &mut dyn Check, scope: &Scope<'_>) -> Result<Diagnosis> {
    let before = check.run(scope.islands)?;
    let attribution = attribute(check, scope, before)?;
    let mut island = None;
    if attribution == Attribution::Precision {
        island = search(check, scope, &scope.layers)?;
        if island.is_none() {
            island = search(check, scope, &scope.modules)?;
        }
    }
    let (schema, check) = ("amp-diagnosis/1".into(), check.describe());
    Ok(Diagnosis { schema, check, attribution, before, island })
}

fn attribute(check: &mut dyn Check, scope: &Scope<'_>, before: Outcome) -> Result<Attribution> {
    if before.passes() {
        return Ok(Attribution::Passes);
    }
    if scope.baseline_moved == Some(true) {
        return Ok(Attribution::Environment);
    }
    let again = check.run(scope.islands)?;
    let moved = match (before.figure, again.figure) {
        (Some(first), Some(second)) => (first - second).abs() >= first - before.limit,
        (first, second) => first != second,
    };
    Ok(if moved { Attribution::Determinism { again } } else { Attribution::Precision })
}

fn search(check: &mut dyn Check, scope: &Scope<'_>, modules: &[String]) -> Result<Option<Island>> {
    let mut ask = |modules: &[String]| check.run(&fp32(scope.islands, modules));
    let Some(found) = ddmin(modules, |modules| Ok(ask(modules)?.passes()))? else {
        return Ok(None);
    };
    let mut fields: Vec<String> = found.set.iter().map(|path| field(path).to_owned()).collect();
    fields.dedup();
    Ok(Some(Island {
        after: ask(&found.set)?,
        with_fields: ask(&fields)?,
        modules: found.set,
        is_one_minimal: found.is_one_minimal,
        tests: found.tests,
        fields,
        cost: None,
    }))
}

/// These regions, and FP32 for the modules.
pub fn fp32(islands: &Islands, modules: &[String]) -> Islands {
    let mut all = islands.clone();
    all.extend(modules.iter().map(|path| (path.clone(), Region::Fp32)));
    all
}

/// What to write for these fields, one after the other.
pub fn attribute_to_paste(fields: &[String]) -> String {
    let lines = fields.iter().map(|field| format!("    #[precision(fp32)]\n    {field}: …"));
    lines.collect::<Vec<_>>().join("\n\n")
}

/// The struct's field that a module is in.
fn field(path: &str) -> &str {
    path.split_once('.').map_or(path, |(field, _)| field)
}
