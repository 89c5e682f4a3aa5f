//! Compares the code that is generated for the structs in `tests/expand` with recorded code.

use quote::quote;
use syn::{DeriveInput, File, Item};

use crate::{check::tests::manifest, derive, spec::Derive};

/// Returns the code that the derive macro generates for the struct in a file, without the struct
/// itself.
fn expanded(source: &str) -> String {
    let file: File = syn::parse_str(source).expect("a Rust file");
    let input = file.items.into_iter().find_map(|item| match item {
        Item::Struct(item) => Some(item),
        _ => None,
    });
    let mut input: DeriveInput = syn::parse2(quote!(#input)).expect("a struct");
    // rustc removes the attribute `#[derive(…)]` before it calls a derive macro, so this function
    // removes the attribute too.
    let derive_attr = input.attrs.iter().position(|attr| attr.path().is_ident("derive"));
    let which = input.attrs.remove(derive_attr.expect("a derive"));
    let which = if quote!(#which).to_string().contains("LightningModule") {
        Derive::LightningModule
    } else {
        Derive::Module
    };
    let tokens = derive(quote!(#input), which, manifest);
    prettyplease::unparse(&syn::parse2(tokens).expect("items"))
}

macro_rules! golden {
    ($name:ident) => {
        #[test]
        fn $name() {
            let source = include_str!(concat!("../../../tests/expand/", stringify!($name), ".rs"));
            let mut settings = insta::Settings::clone_current();
            settings.set_snapshot_path("../../../tests/expand");
            settings.set_prepend_module_to_snapshot(false);
            settings.set_omit_expression(true);
            settings.bind(|| insta::assert_snapshot!(stringify!($name), expanded(source)));
        }
    };
}

golden!(mixed_precision_demo);
golden!(regions);
golden!(generic);
golden!(block);
