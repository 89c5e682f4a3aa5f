//! Policy files: the precisions of single modules of a model ("precision regions"), stored outside
//! the model's code.

use std::{collections::BTreeMap, fs, path::Path};

use amp_core::{
    Error, Result,
    file::Staged,
    hardware::Fingerprint,
    nn::{Role, Visit, Visitor},
    precision::{Precision, Region},
    tch::Tensor,
};
use serde::{Deserialize, Serialize};

/// The precisions of single modules, by module path.
pub type Overrides = BTreeMap<String, Region>;

const SCHEMA: &str = "amp-policy/2";
/// The previous version of the file format, which can still be read. Its field `islands` is called
/// `overrides` in the current version.
const PREVIOUS: &str = "amp-policy/1";

/// The content of a policy file: the precisions of single modules of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// The version of this format. The version changes if a field gets another meaning.
    pub schema: String,
    /// The name under which the model is registered.
    pub model: String,
    /// The precision under which the policy was found.
    pub precision: Precision,
    /// The machine on which the policy was found. This is only information: the policy may be used
    /// on other machines.
    pub fingerprint: Fingerprint,
    /// Why these modules stay in FP32. This is only information.
    pub reason: String,
    /// The precisions of single modules, by the module's path. They replace the precisions that the
    /// model's code sets for these modules.
    #[serde(alias = "islands")]
    pub overrides: Overrides,
}

impl PolicyFile {
    /// Creates a policy for the model `model`.
    pub fn new(
        model: &str,
        precision: Precision,
        fingerprint: Fingerprint,
        reason: String,
        overrides: Overrides,
    ) -> Self {
        let (schema, model) = (SCHEMA.to_owned(), model.to_owned());
        Self { schema, model, precision, fingerprint, reason, overrides }
    }

    /// Writes the policy to the file `place`.
    /// # Errors
    /// When the file cannot be written, for example because the disk is full.
    pub fn write(&self, place: Staged) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::config(format!("the policy cannot be written: {error}")))?;
        place.write((text + "\n").as_bytes())
    }

    /// Reads the policy of the model named `name`.
    ///
    /// # Errors
    /// When the file is missing or is not a policy file, the policy belongs to another model, or
    /// the policy names a module that the model does not have.
    pub fn read(path: &Path, name: &str, model: &(impl Visit + ?Sized)) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
        let refuse = |why: String| Error::config(format!("{}: {why}", path.display()));
        let fix = "write one with `cargo amp diagnose --fix`";
        let policy: Self = serde_json::from_str(&text)
            .map_err(|error| refuse(format!("it is not a policy file ({error}); {fix}")))?;
        if ![SCHEMA, PREVIOUS].contains(&policy.schema.as_str()) {
            return Err(refuse(format!(
                "the schema of the file is `{}`, not `{SCHEMA}`; {fix}",
                policy.schema
            )));
        }
        if policy.model != name {
            return Err(refuse(format!(
                "the policy is for the model {}, not for {name}; {fix}",
                policy.model
            )));
        }
        let modules = Modules::of(model);
        if let Some(unknown) = policy.overrides.keys().find(|path| !modules.contains(path)) {
            return Err(refuse(format!("{name} has no module `{unknown}`; {fix}")));
        }
        Ok(policy)
    }
}

/// Collects the paths of a model's modules.
#[derive(Default)]
struct Modules {
    all: Vec<String>,
    open: Vec<String>,
}

impl Modules {
    fn of(model: &(impl Visit + ?Sized)) -> Self {
        let mut modules = Self::default();
        model.visit(&mut modules);
        modules
    }

    fn contains(&self, path: &str) -> bool {
        self.all.iter().any(|other| other == path)
    }
}

impl Visitor for Modules {
    fn enter(&mut self, name: &str, _: Option<Region>) {
        self.open.push(name.to_owned());
        self.all.push(self.open.join("."));
    }

    fn leave(&mut self) {
        self.open.pop();
    }

    fn tensor(&mut self, _: &str, _: &Tensor, _: Role) {}
}
