//! Compiles the README's example and the documentation of the derive macros. amp-derive's examples
//! need amp-core, on which amp-derive cannot depend. Tests that use several crates of the workspace
//! are in `tests/tests`.

/// Compiles and runs the examples in the documentation of `derive(LightningModule)`.
#[cfg(doctest)]
#[doc = include_str!("../../amp-derive/docs/lightning_module.md")]
pub struct LightningModuleDocs;

/// Compiles and runs the examples in the documentation of `derive(Batch)`.
#[cfg(doctest)]
#[doc = include_str!("../../amp-derive/docs/batch.md")]
pub struct BatchDocs;

/// Compiles and runs the examples in the documentation of `derive(Module)`.
#[cfg(doctest)]
#[doc = include_str!("../../amp-derive/docs/module.md")]
pub struct ModuleDocs;

/// The README's example.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// The guide's page on data, which needs features of amp-core.
#[cfg(doctest)]
#[doc = include_str!("../../docs/guide/data.md")]
pub struct DataGuide;
