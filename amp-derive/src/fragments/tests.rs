//! Tests of structs that contain fragments of a `macro_rules!` macro. rustc passes each fragment to
//! a derive macro as a group without delimiters. In these tests, such a group is written `f!{…}`.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use quote::quote;

use super::{dissolve, written_out};
use crate::{check::tests::manifest, derive, spec::Derive};

/// Replaces each `f!{…}` in the tokens by a group without delimiters.
fn fragments(tokens: TokenStream) -> TokenStream {
    let mut output: Vec<TokenTree> = Vec::new();
    for token in tokens {
        let TokenTree::Group(group) = token else {
            output.push(token);
            continue;
        };
        let content = fragments(group.stream());
        let is_fragment = matches!(&output[..], [.., TokenTree::Ident(name), TokenTree::Punct(mark)]
            if name == "f" && mark.as_char() == '!');
        let delimiter = if is_fragment { Delimiter::None } else { group.delimiter() };
        output.truncate(output.len() - if is_fragment { 2 } else { 0 });
        output.push(Group::new(delimiter, content).into());
    }
    output.into_iter().collect()
}

#[track_caller]
fn becomes(written: TokenStream, expected: TokenStream) {
    // The tokens `>>` and `> >` mean the same in a type, so the texts are compared without spaces.
    let text = |tokens: TokenStream| tokens.to_string().replace(' ', "");
    assert_eq!(text(dissolve(fragments(written))), text(expected));
}

#[test]
fn a_single_fragment_is_unchanged() {
    becomes(quote!(linear(f! {1 + 2}, f! {n})), quote!(linear(1 + 2, n)));
    becomes(quote!(adamw, lr = f! {-1e-3}), quote!(adamw, lr = -1e-3));
    becomes(quote!(with = f! {|a, b| a - b}), quote!(with = |a, b| a - b));
    becomes(quote!(vec![f! {a + b}; f! {n + 1}]), quote!(vec![a + b; n + 1]));
    becomes(quote!(f!{pub(crate)} field: f!{&'a T}), quote!(pub(crate) field: &'a T));
    becomes(quote!(f!{} field: f!{f!{T}}), quote!(field: T));
}

/// Checks that a fragment next to an operator gets parentheses if the operator would otherwise
/// apply to only a part of the fragment.
#[test]
fn operators_get_parentheses() {
    becomes(quote!(2 * f! {1 + 2}), quote!(2 * (1 + 2)));
    becomes(quote!(f! {1 + 2} * 2), quote!((1 + 2) * 2));
    becomes(quote!(x == f! {a && b}), quote!(x == (a && b)));
    becomes(quote!(0..=f! {n + 1}), quote!(0..=(n + 1)));
    becomes(quote!(f! {a as f64} < b), quote!((a as f64) < b));
    becomes(quote!(f! {-1.0}.abs()), quote!((-1.0).abs()));
    becomes(quote!(f!{&x}.f!{name}), quote!((&x).name));
    becomes(quote!(f! {-1}..=f! {1}), quote!(-1..=1));
    becomes(quote!(2 * f! {x.len()}?), quote!(2 * x.len()?));
    becomes(quote!(vec![2 * f! {a + b}]), quote!(vec![2 * (a + b)]));
    becomes(quote!(-f! {f!{a} + f!{b * c}}), quote!(-(a + (b * c))));
}

#[test]
fn calls_blocks_and_paths_keep_their_meaning() {
    becomes(quote!(f! {linear}(4, 2)), quote!(linear(4, 2)));
    becomes(quote!(f! {self.run}(x)), quote!((self.run)(x)));
    becomes(quote!(f! {|x| x}(y)), quote!((|x| x)(y)));
    becomes(quote!(if a f!{{ b }} else f!{{ c }}), quote!(if a { b } else { c }));
    becomes(
        quote!({
            f! {let y = x + 1};
            y
        }),
        quote!({
            let y = x + 1;
            y
        }),
    );
    becomes(quote!(f!{models::Net}::new()), quote!(models::Net::new()));
    becomes(quote!(f!{Vec<f64>}::new()), quote!(<Vec<f64>>::new()));
    becomes(quote!(f!{[f64; 2]}::default()), quote!(<[f64; 2]>::default()));
}

#[test]
fn types_keep_their_meaning() {
    becomes(quote!(Vec<f! {Box<dyn Module>}>), quote!(Vec<Box<dyn Module>>));
    becomes(quote!(&f! {dyn Module + Send}), quote!(&(dyn Module + Send)));
    becomes(quote!(x: &f!{Tensor}), quote!(x: &Tensor));
}

/// Checks that tokens without fragments keep their spans, so that errors underline what the user
/// wrote.
#[test]
fn input_without_fragments_keeps_its_spans() {
    let tokens: TokenStream = "a(b, c)".parse().expect("tokens");
    let close = |tokens: TokenStream| match tokens.into_iter().last() {
        Some(TokenTree::Group(group)) => group.span_close().source_text(),
        _ => None,
    };
    assert_eq!(close(written_out(tokens)), Some(")".to_owned()));
}

/// Checks that a struct that contains fragments of a macro expands to the same code as a struct
/// that was written by hand. The fragments occur in every position in which they can occur.
#[test]
fn a_struct_of_fragments_expands_as_one_written_by_hand() {
    let from_fragments = fragments(quote! {
        #[f!{loss(cross_entropy)}]
        #[metric(f!{top_k}, k = f!{3}, name = f!{top})]
        #[metric(with = f!{Own}, name = f!{"own"}, stage = f!{val})]
        #[optimizer(
            f!{adamw}, lr = f!{self.rate}, betas = f!{(f!{0.9}, 0.95)}, eps = f!{1e-4},
            f!{group(params = f!{["*.bias"]}, weight_decay = f!{0.0})}
        )]
        #[scheduler(f!{one_cycle}, max_lr = f!{0.1}, total_steps = f!{100}, interval = f!{step})]
        #[log(f!{train_loss(f!{on_step}, prog_bar = f!{true})}, val_top(f!{prog_bar}))]
        #[on_train_batch_end(f!{Self::seen}, f!{late})]
        #[forward(f!{|x: &Tensor| head(&body(x)?)})]
        #[amp(crate = f!{kit::engine})]
        f!{pub(crate)} struct f!{Net}<B> {
            #[hparam(default = f!{1e-3})]
            f!{pub} rate: f!{f64},
            #[hparam(f!{default})]
            width: f!{i64},
            #[layer]
            given: f!{Option<f!{B}>},
            #[layer(f!{sequential(f!{linear(f!{4}, width, bias = f!{false})}, f!{relu})})]
            #[precision(f!{bf16})]
            body: f!{Sequential},
            #[layer(repeat(f!{2}, f!{|i| f!{linear(width, f!{i + 1})}}))]
            #[precision(autocast = f!{off})]
            many: f!{Vec<Linear>},
            #[layer(f!{checkpoint(f!{linear(width, 2)}, enabled = f!{true})})]
            head: f!{Checkpoint<Linear>},
            #[layer(optional(f!{true}, f!{relu}))]
            maybe: f!{Option<Relu>},
            #[state(f!{Vec<f64>}::new())]
            seen: f!{Vec<f64>},
        }
    });
    let by_hand = quote! {
        #[loss(cross_entropy)]
        #[metric(top_k, k = 3, name = top)]
        #[metric(with = Own, name = "own", stage = val)]
        #[optimizer(
            adamw, lr = self.rate, betas = (0.9, 0.95), eps = 1e-4,
            group(params = ["*.bias"], weight_decay = 0.0)
        )]
        #[scheduler(one_cycle, max_lr = 0.1, total_steps = 100, interval = step)]
        #[log(train_loss(on_step, prog_bar = true), val_top(prog_bar))]
        #[on_train_batch_end(Self::seen, late)]
        #[forward(|x: &Tensor| head(&body(x)?))]
        #[amp(crate = kit::engine)]
        pub(crate) struct Net<B> {
            #[hparam(default = 1e-3)]
            pub rate: f64,
            #[hparam(default)]
            width: i64,
            #[layer]
            given: Option<B>,
            #[layer(sequential(linear(4, width, bias = false), relu))]
            #[precision(bf16)]
            body: Sequential,
            #[layer(repeat(2, |i| linear(width, i + 1)))]
            #[precision(autocast = off)]
            many: Vec<Linear>,
            #[layer(checkpoint(linear(width, 2), enabled = true))]
            head: Checkpoint<Linear>,
            #[layer(optional(true, relu))]
            maybe: Option<Relu>,
            #[state(<Vec<f64>>::new())]
            seen: Vec<f64>,
        }
    };
    let expanded = |tokens| derive(tokens, Derive::LightningModule, manifest).to_string();
    assert_eq!(expanded(from_fragments), expanded(by_hand));
}
