//! Tests of the error messages of `derive(Batch)`. Each case violates one rule.

use quote::quote;

use crate::{batch::derive, check::tests::manifest};

/// Returns the errors that the derive macro reports for a struct that it refuses.
fn errors(source: &str) -> Vec<String> {
    let input: syn::DeriveInput = syn::parse_str(source).expect("an item");
    let code = derive(quote!(#input), manifest);
    let file: syn::File = syn::parse2(code).expect("items");
    let message = |item: syn::Item| match item {
        syn::Item::Macro(item) => {
            let text: syn::LitStr = item.mac.parse_body().expect("a message");
            Some(text.value())
        }
        _ => None,
    };
    file.items.into_iter().filter_map(message).collect()
}

#[test]
fn roles_are_named_once() {
    for (source, expected) in [
        ("struct B { #[batch(idx)] a: Tensor }", "unknown role `idx`: did you mean `ids`?"),
        (
            "struct B { #[batch] a: Tensor }",
            "name the role: `value`, `ids`, `mask`, `weights` or `shared`",
        ),
        ("struct B { #[batch(ids, mask)] a: Tensor }", "a field has one role: keep one"),
        (
            "struct B { #[batch(\"ids\")] a: Tensor }",
            "expected `value`, `ids`, `mask`, `weights` or `shared`",
        ),
        (
            "struct B { #[batch(ids)] #[batch(ids)] a: Tensor }",
            "`#[batch]` is given twice: keep one",
        ),
        (
            "struct B { #[batch(weights)] a: Tensor, #[batch(weights)] b: Tensor }",
            "`a` is already the field with the weights: mark only one field as `weights`",
        ),
        (
            "#[batch(ids)] struct B { a: Tensor }",
            "`#[batch]` belongs on a field of the batch, not on the struct",
        ),
    ] {
        assert_eq!(errors(source), [expected], "{source}");
    }
}

#[test]
fn batches_are_structs_with_named_fields() {
    for (source, expected) in [
        (
            "struct B(Tensor);",
            "name the fields, as in `{ ids: Tensor }`: tensors are named after them",
        ),
        ("struct B;", "`B` has no tensors: give it a field such as `ids: Tensor`"),
        ("enum B { A }", "only structs can derive `Batch`: put the tensors into a struct"),
    ] {
        assert_eq!(errors(source), [expected], "{source}");
    }
    assert!(errors("struct B<T> { #[batch(mask)] a: Option<T>, b: Vec<Tensor> }").is_empty());
}
