//! What the derives say to a user: `ui/<rule>/<defect>.rs` holds one way to break a rule, the
//! `.stderr` beside it what rustc prints.
//!
//! `TRYBUILD=overwrite cargo test -p tests --test ui` writes the `.stderr` files anew; read them
//! as a user would.

#[test]
fn every_defect_has_its_message() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("ui/*/*.rs");
}
